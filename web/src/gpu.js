// gpu.js - runs in the worker: a GPU of the browser, as the module dibit-gpu imports it (web/gpu.c,
// src/gpu/gpu.h). The module's calls are synchronous and never wait: what WebGPU does later, compiling
// kernels, finding memory, reading back, is awaited between them, by settled() and result().
import { fail } from './errors.js';

const LIMITS = ['maxBufferSize', 'maxStorageBufferBindingSize', 'maxStorageBuffersPerShaderStage',
    'maxComputeInvocationsPerWorkgroup', 'maxComputeWorkgroupStorageSize', 'maxComputeWorkgroupsPerDimension',
    'minStorageBufferOffsetAlignment'];
const AS_ADAPTER = LIMITS.slice(0, 5).concat('maxComputeWorkgroupSizeX');
const FEATURES = ['subgroups', 'shader-f16'];
const STORAGE = 0x80 | 4 | 8, STAGING = 1 | 8; // buffer usages: storage, copied from and to; read, copied to
const POLL_MS = 2;
const WAIT = 1 << 30; // DIBIT_WAIT of dibit.h
const FIREFOX = /Firefox\//.test(globalThis.navigator?.userAgent ?? '');

export class Gpu {
    lost = ''; // why the device can no longer be used
    type = 'device_lost'; // of the error that says so
    #slots = [null]; // number -> buffer, kernel or bind; those that were freed: undefined
    #free = [];
    #modules = new Map(); // WGSL text -> GPUShaderModule
    #pending = []; // promises of what was asked for
    #encoder = null; #pass = null; #kernel = null;
    #staging = null; #read = null;
    #wake = null; #last = Promise.resolve();

    /**
     * @param {{ software?: boolean, floor?: boolean }} o software: a CPU may play the GPU; floor: ask for
     *   no more than every WebGPU device has
     */
    static async open(o) {
        const gpu = new Gpu();
        await gpu.acquire(o);
        return gpu;
    }

    /** A device, the first one or another after one was lost; nothing of the old one is there any more. */
    async acquire({ software = true, floor = false }) {
        const api = globalThis.navigator?.gpu;
        if (!api) fail('unsupported', 'this browser has no WebGPU');
        const adapter = await api.requestAdapter({ powerPreference: 'high-performance' });
        if (!adapter) fail('unsupported', 'this browser has WebGPU, but no GPU adapter');
        const info = adapter.info ?? {}, isSoftware = softwareIn(adapter, info);
        if (isSoftware && !software) fail('unsupported', 'the only GPU adapter is software');
        const has = name => !floor && adapter.features.has(name);
        const requiredLimits = floor ? {} : Object.fromEntries(AS_ADAPTER.map(l => [l, adapter.limits[l]]));
        const device = await adapter.requestDevice({ requiredFeatures: FEATURES.filter(has), requiredLimits });
        this.device?.destroy();
        Object.assign(this, { device, lost: '', type: 'device_lost' });
        this.info = { vendor: info.vendor || '', architecture: info.architecture || '',
            description: info.description || info.device || '', software: isSoftware, floor };
        const dot4 = !floor && api.wgslLanguageFeatures?.has('packed_4x8_integer_dot_product') === true;
        this.caps = [isSoftware, dot4, ...FEATURES.map(has), info.subgroupMinSize ?? 0, info.subgroupMaxSize ?? 0,
            ...LIMITS.map(l => device.limits[l])].map(Number);
        this.#slots = [null];
        this.#free = [];
        this.#modules.clear();
        this.#pending = [];
        this.#encoder = this.#pass = this.#kernel = this.#staging = this.#read = null;
        this.#watch(device);
    }

    #watch(device) {
        const ours = why => this.device === device && this.lose(why);
        device.lost.then(({ message }) => ours(message || 'the device was lost'));
        device.onuncapturederror = e => {
            e.preventDefault?.();
            ours(e.error.message);
        };
    }

    /** From now on every call of the module fails, and says why. */
    lose(why, type = 'device_lost') {
        if (!this.lost) {
            this.lost = why.replace(/\s+/g, ' ').trim();
            this.type = type;
        }
        this.wake();
    }

    /** Resolves when all kernels are compiled and all memory was had; else throws what was not. */
    async settled() {
        while (this.#pending.length && !this.lost) await this.#soon(Promise.all(this.#pending.splice(0)));
        if (this.lost) fail(this.type, `the GPU failed: ${this.lost}`);
    }

    /** Resolves when the result under way is there, the device is gone, or wake() was called. */
    result() {
        return this.#read && !this.#read.done ? this.#soon(this.#read.there) : Promise.resolve();
    }

    /** Resolves when all that was submitted is done, or as above. */
    idle() {
        return this.lost ? Promise.resolve() : this.#soon(this.device.queue.onSubmittedWorkDone().catch(() => {}));
    }

    wake() {
        this.#wake?.();
    }

    // Not Promise.race(): one that is raced again and again, as the loss of the device, keeps all its rivals.
    // Firefox looks for what is done each 100 ms, unless something is submitted.
    async #soon(promise) {
        const poke = () => { if (!this.lost) this.device.queue.submit([]); };
        const timer = FIREFOX ? setInterval(poke, POLL_MS) : 0;
        if (timer) poke();
        await new Promise(resolve => {
            this.#wake = resolve;
            promise.then(resolve);
        });
        clearInterval(timer);
    }

    /**
     * The result of a call, which is made again while the GPU has not got it; one caller at a time.
     * @param {() => number} call @param {() => void} stay throws where the result is no longer wanted
     */
    ask(call, stay) {
        const mine = this.#last.then(async () => {
            await this.settled();
            for (let r; ; await this.result()) {
                stay();
                if ((r = call()) !== WAIT) return r;
            }
        });
        this.#last = mine.catch(() => {});
        return mine;
    }

    close() {
        this.#drop();
        for (const slot of this.#slots) slot?.buffer?.destroy();
        this.#slots = [null];
    }

    end() {
        this.lose('it was left');
        this.device?.destroy();
    }

    // ---- what the module imports ----

    /** @param {() => import('./wasm.js').Wasm} wasm the module's memory, once it is there */
    imports(wasm) {
        const texts = () => [this.info.description, this.info.vendor, this.info.architecture, this.lost];
        return {
            text: (which, p, cap) => {
                const w = wasm(), n = texts()[which] ? new TextEncoder().encodeInto(texts()[which], w.bytes.subarray(p, p + cap - 1)).written : 0;
                w.bytes[p + n] = 0;
            },
            cap: which => this.caps[which],
            buffer: n => this.#buffer(n >>> 0),
            write: (id, at, p, n) => {
                if (!this.lost) this.device.queue.writeBuffer(this.#slots[id].buffer, at >>> 0, wasm().memory.buffer, p >>> 0, n >>> 0);
            },
            kernel: (label, text, consts, n) => {
                const w = wasm(), constants = {};
                for (let p = consts >>> 0; n--; p += 16) constants[w.text(w.u32(p))] = w.view.getFloat64(p + 8, true);
                return this.#compile(w.text(label >>> 0), w.text(text >>> 0), constants);
            },
            bind: (kernel, ranges, n) => {
                const w = wasm(), at = i => w.u32(ranges + 4 * i);
                return this.#add({ kernel, ranges: Array.from({ length: n }, (_, i) =>
                    ({ id: at(3 * i), offset: at(3 * i + 1), size: at(3 * i + 2) || undefined })) });
            },
            run: (kernel, bind, x, y, z) => this.#run(kernel, bind, x, y, z),
            submit: () => this.#submit(),
            drop: () => this.#drop(),
            read_start: (id, at, n) => this.#readStart(this.#slots[id].buffer, at >>> 0, n >>> 0),
            read_ready: p => this.#readReady(p >>> 0, wasm()),
            free: id => this.#release(id),
            close: () => this.close(),
        };
    }

    #add(slot) {
        const id = this.#free.pop() ?? this.#slots.length;
        this.#slots[id] = slot;
        return id;
    }

    #release(id) {
        this.#slots[id]?.buffer?.destroy();
        if (!this.#slots[id]) return;
        this.#slots[id] = undefined;
        this.#free.push(id);
    }

    #createBuffer(size, usage) {
        this.device.pushErrorScope('out-of-memory');
        const buffer = this.device.createBuffer({ size, usage });
        this.#pending.push(this.device.popErrorScope().then(e => {
            if (e) this.lose(`no GPU memory for ${size} bytes: ${e.message}`, 'out_of_memory');
        }, () => {}));
        return buffer;
    }

    #buffer(n) {
        try {
            return this.#add({ buffer: this.#createBuffer(n, STORAGE), size: n });
        } catch {
            return 0; // some browsers throw where there is no memory
        }
    }

    #compile(label, code, constants) {
        const { device } = this, kernel = { label, pipeline: null };
        let module = this.#modules.get(code);
        device.pushErrorScope('validation'); // what is wrong with the text is heard below
        if (!module) this.#modules.set(code, module = device.createShaderModule({ label, code }));
        device.popErrorScope().catch(() => {});
        const made = device.createComputePipelineAsync({ label, layout: 'auto', compute: { module, entryPoint: 'main', constants } });
        this.#pending.push(made.then(pipeline => { kernel.pipeline = pipeline; }, async e => {
            const said = await module.getCompilationInfo().catch(() => null);
            const first = said?.messages.find(m => m.type === 'error');
            const why = first ? `${first.lineNum}:${first.linePos} ${first.message}` : e.message;
            if (e.reason || first) this.lose(`kernel ${label}: ${why}`, 'unsupported'); // else the device is gone
        }));
        return this.#add(kernel);
    }

    #group(bind) {
        const entries = bind.ranges.map(({ id, offset, size }, binding) => {
            const { buffer } = this.#slots[id];
            return { binding, resource: { buffer, offset, size: size ?? buffer.size - offset } };
        });
        const layout = this.#slots[bind.kernel].pipeline.getBindGroupLayout(0);
        return this.device.createBindGroup({ layout, entries });
    }

    #run(id, bind, x, y, z) {
        const kernel = this.#slots[id];
        if (this.lost) return;
        if (!kernel.pipeline) return this.lose(`kernel ${kernel.label} was not ready`, 'internal');
        this.#encoder ??= this.device.createCommandEncoder();
        this.#pass ??= this.#encoder.beginComputePass();
        if (this.#kernel !== kernel) this.#pass.setPipeline(kernel.pipeline);
        this.#kernel = kernel;
        const slot = this.#slots[bind];
        this.#pass.setBindGroup(0, slot.group ??= this.#group(slot));
        this.#pass.dispatchWorkgroups(x, y, z);
    }

    #endPass() {
        this.#pass?.end();
        this.#pass = this.#kernel = null;
    }

    #submit() {
        if (!this.#encoder || this.lost) return this.#drop();
        this.#endPass();
        this.device.queue.submit([this.#encoder.finish()]);
        this.#encoder = null;
    }

    #drop() {
        this.#endPass();
        this.#encoder = null;
    }

    #readStart(buffer, at, n) {
        if (this.lost) return;
        if (!(this.#staging?.size >= n)) {
            this.#staging?.destroy();
            this.#staging = this.#createBuffer(n, STAGING);
        }
        this.#endPass();
        this.#encoder ??= this.device.createCommandEncoder();
        this.#encoder.copyBufferToBuffer(buffer, at, this.#staging, 0, n);
        this.#submit();
        const read = this.#read = { n, done: false };
        const { device } = this;
        read.there = this.#staging.mapAsync(1, 0, n).then(() => { read.done = true; },
            e => device === this.device && this.lose(`a read was not answered: ${e.message}`));
    }

    #readReady(p, w) {
        if (!this.#read.done) return 0;
        try {
            w.bytes.set(new Uint8Array(this.#staging.getMappedRange(0, this.#read.n)), p);
            this.#staging.unmap();
        } catch (e) { // the device went in between
            this.lose(e.message);
            return -1;
        }
        this.#read = null;
        return 1;
    }
}

const softwareIn = (adapter, info) => (info.isFallbackAdapter ?? adapter.isFallbackAdapter) === true ||
    /swiftshader|llvmpipe|lavapipe|basic render/i.test(`${info.architecture} ${info.description} ${info.device}`);
