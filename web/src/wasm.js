// wasm.js - a module's instance, and typed access to its memory. The structs of dibit.h are read and
// written by the names and offsets that the module gives out itself (dibit_layout), so no number of
// theirs stands here.
import { wasmFeatures } from './detect.js';
import { engineError, fail } from './errors.js';

const encoder = new TextEncoder(), decoder = new TextDecoder();
const FLOATS = new Set(['temperature', 'top_p', 'min_p', 'repeat_penalty']);
const WIDE = new Set(['seed', 'n_params', 'kv_zero', 'kv_saturated']); // 64 bits

export class Wasm {
    /** @param {WebAssembly.Exports} exports @param {WebAssembly.Memory} memory */
    constructor(exports, memory) {
        this.x = exports;
        this.memory = memory;
        this.threads = [];
        this.at = this.#layout();
        this.err = this.struct('DibitError');
        this.out = this.malloc(8); // a pointer that a call gives back
    }

    // A view is made anew when memory has grown: of memory that is not shared the old one is empty.
    get bytes() {
        const buffer = this.memory.buffer;
        if (this.#bytes?.buffer !== buffer) this.#bytes = new Uint8Array(buffer);
        return this.#bytes;
    }
    #bytes;

    get view() {
        const buffer = this.memory.buffer;
        if (this.#view?.buffer !== buffer) this.#view = new DataView(buffer);
        return this.#view;
    }
    #view;

    #layout() {
        const at = {};
        for (let p = this.x.dibit_layout(); this.u32(p); p += 8)
            at[this.text(this.u32(p))] = this.u32(p + 4);
        return at;
    }

    u32(p) {
        return this.view.getUint32(p, true);
    }

    setU32(p, v) {
        this.view.setUint32(p, v, true);
    }

    /** A copy, so that it may be decoded even where memory is shared. */
    slice(p, n) {
        return this.bytes.slice(p, p + n);
    }

    text(p, n = this.bytes.indexOf(0, p) - p) {
        return decoder.decode(this.slice(p, n));
    }

    malloc(n) {
        const p = this.x.malloc(n) >>> 0;
        if (!p) fail('out_of_memory', `${n} bytes could not be had`, { needed: n });
        return p;
    }

    /** A zeroed struct that stays until it is freed. */
    struct(type) {
        const n = this.at[type], p = this.malloc(n);
        this.bytes.fill(0, p, p + n);
        return p;
    }

    get(type, p, field) {
        p += this.at[`${type}.${field}`];
        return WIDE.has(field) ? Number(this.view.getBigUint64(p, true)) : this.view.getInt32(p, true);
    }

    set(type, p, fields) {
        for (const [name, value] of Object.entries(fields)) {
            const at = p + this.at[`${type}.${name}`];
            if (FLOATS.has(name)) this.view.setFloat32(at, value, true);
            else if (WIDE.has(name)) this.view.setBigUint64(at, BigInt(value), true);
            else this.view.setInt32(at, value, true);
        }
    }

    /** Calls fn(put), where put(string or bytes) gives a place in memory that is freed afterwards. */
    scoped(fn) {
        const owned = [];
        const put = data => {
            const bytes = typeof data === 'string' ? encoder.encode(data + '\0') : data;
            const p = this.malloc(bytes.length);
            owned.push(p);
            this.bytes.set(bytes, p);
            return p;
        };
        try {
            return fn(put);
        } finally {
            for (const p of owned) this.x.free(p);
        }
    }

    /**
     * Calls a function whose arguments are texts (each with its length) and lists of the first
     * bytes of files, [{ head, size }], and that writes lines of fields with tabs between them.
     * @returns {string[][]}
     */
    lines(name, ...args) {
        return this.scoped(put => {
            const flat = args.flatMap(a => (Array.isArray(a) ? this.#heads(put, a) : this.#sized(put, a)));
            let cap = 1 << 13;
            for (;;) {
                const out = put(new Uint8Array(cap)), n = this.ok(this.x[name](...flat, out, cap, this.err));
                if (n < cap) return this.text(out, n).split('\n').filter(Boolean).map(line => line.split('\t'));
                cap = n + 1;
            }
        });
    }

    #sized(put, text) {
        const bytes = encoder.encode(text);
        return [put(bytes.length ? bytes : new Uint8Array(1)), bytes.length];
    }

    #heads(put, parts) {
        const each = this.at.DibitImage, images = put(new Uint8Array(each * parts.length || 1));
        parts.forEach(({ head }, i) =>
            this.set('DibitImage', images + i * each, { data: put(head), size: head.length }));
        const totals = Float64Array.from(parts, part => part.size ?? 0);
        return [images, put(new Uint8Array(parts.length ? totals.buffer : 1)), parts.length];
    }

    /** The result of a call of dibit.h as a number; a negative one is thrown as the error it is. */
    ok(code) {
        const n = Number(code);
        if (n < 0) throw engineError(n, this.text(this.err + this.at['DibitError.text']));
        return n;
    }
}

/**
 * What a module imports: a clock, lines for the console, and its memory where threads share it.
 * @param {{ memory: WebAssembly.Memory }} m @param {boolean} shared
 */
export const imports = (m, shared) => ({
    env: shared ? { memory: m.memory } : {},
    dibit: {
        now: () => performance.now(),
        write: (p, n) => console.warn(decoder.decode(new Uint8Array(m.memory.buffer).slice(p, p + n))),
    },
});

/**
 * The modules that this browser runs, best first, each with the features that it needs.
 * @param {string[]} disabled features that have failed here
 */
export function chooseModules({ n_threads, backend }, disabled) {
    const has = wasmFeatures(), may = name => !disabled.includes(name);
    if (!has.wasm_simd) fail('unsupported', 'this browser has no WebAssembly SIMD');
    const cores = Math.min(64, n_threads ?? globalThis.navigator?.hardwareConcurrency ?? 1);
    const threaded = has.wasm_threads && has.shared_memory && globalThis.crossOriginIsolated !== false &&
        may('wasm_threads') && cores > 1;
    const relaxed = has.wasm_relaxed_dot && may('wasm_relaxed');
    const gpu = may('webgpu') && (backend === 'webgpu' || backend === 'auto') && globalThis.navigator?.gpu;
    const all = [...gpu ? [['gpu', 1, ['webgpu']]] : [], ['relaxed', cores, ['wasm_relaxed', 'wasm_threads']], ['threads', cores, ['wasm_threads']],
        ['relaxed1', 1, ['wasm_relaxed']], ['simd', 1, []]];
    return all.map(([module, threads, needs]) => ({ module, threads, needs }))
        .filter(c => (threaded || !c.needs.includes('wasm_threads')) && (relaxed || !c.needs.includes('wasm_relaxed')));
}

const PAGE = 65536, MAX_PAGES = 65536;

// Some systems reserve the whole maximum of a shared memory, so it is the budget, and less where that
// cannot be had.
function sharedMemory(budget) {
    for (let maximum = Math.min(MAX_PAGES, Math.ceil(budget / PAGE)); ; maximum >>= 1) {
        try {
            return new WebAssembly.Memory({ initial: 64, maximum, shared: true });
        } catch (e) {
            if (maximum < 1024) throw e;
        }
    }
}

/**
 * Starts a module whose memory may take so many bytes at most.
 * @param {import('./gpu.js').Gpu} [gpu] for the module that uses one
 */
export async function instantiate(module, budget = Infinity, gpu) {
    const shared = WebAssembly.Module.imports(module).some(i => i.kind === 'memory');
    const m = { memory: shared ? sharedMemory(budget) : null };
    let wasm;
    const host = { ...imports(m, shared), ...gpu && { gpu: gpu.imports(() => wasm) } };
    const { exports: x } = await WebAssembly.instantiate(module, host);
    m.memory ??= x.memory;
    return wasm = Object.assign(new Wasm(x, m.memory), { module, shared, gpu });
}

const starting = new Map(); // a thread's number -> what to call when it cannot be

/**
 * Has n workers started that lend their threads to the engine. The page does it: in Firefox a worker
 * that starts another one now and then never comes back from `new Worker`. What they get goes past the
 * page, which would hold on to the memory.
 */
export function startThreads(wasm, n) {
    for (let i = 0; i < n; i++) {
        const stack = wasm.x.dibit_thread_stack() >>> 0, id = starting.size;
        if (!stack) return;
        const thread = { ready: false }, { port1, port2 } = new MessageChannel();
        thread.known = new Promise(resolve => {
            starting.set(id, () => resolve(false));
            port1.onmessage = () => {
                port1.close();
                resolve(thread.ready = true);
            };
        });
        self.postMessage({ thread: { id, port: port2 } }, [port2]);
        port1.postMessage({ module: wasm.module, memory: wasm.memory, stack });
        wasm.threads.push(thread);
    }
}

/** The page's word that it could not. */
export const threadFailed = id => starting.get(id)?.();

/** Ends them all; none may be at work. */
export function endThreads(wasm) {
    if (wasm?.threads.length) self.postMessage({ endThreads: true });
}

/** How many threads work, the caller's own counted; waits a little for those on their way. */
export async function countThreads(wasm, patience = 3000) {
    const late = new Promise(resolve => setTimeout(resolve, patience));
    await Promise.race([late, Promise.all(wasm.threads.map(t => t.known))]);
    return 1 + wasm.threads.filter(t => t.ready).length;
}
