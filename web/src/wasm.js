// wasm.js - a module's instance, and typed access to its memory. The structs of dibit.h are read and
// written by the names and offsets that the module gives out itself (dibit_layout), so no number of
// theirs stands here.
import { engineError, fail } from './errors.js';

const encoder = new TextEncoder(), decoder = new TextDecoder();
const FLOATS = new Set(['temperature', 'top_p', 'min_p', 'repeat_penalty']);
const WIDE = new Set(['seed', 'n_params', 'kv_zero', 'kv_saturated']); // 64 bits

export class Wasm {
    /** @param {WebAssembly.Exports} exports @param {WebAssembly.Memory} memory */
    constructor(exports, memory) {
        this.x = exports;
        this.memory = memory;
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

    /** The result of a call of dibit.h as a number; a negative one is thrown as the error it is. */
    ok(code) {
        const n = Number(code);
        if (n < 0) throw engineError(n, this.text(this.err + this.at['DibitError.text']));
        return n;
    }
}

/** Starts a module. Its imports: a clock, and text for the console. */
export async function instantiate(module) {
    let memory;
    const host = {
        now: () => performance.now(),
        write: (p, n) => console.log(decoder.decode(new Uint8Array(memory.buffer).slice(p, p + n))),
    };
    const instance = await WebAssembly.instantiate(module, { dibit: host });
    memory = instance.exports.memory;
    return new Wasm(instance.exports, memory);
}
