// engine.js - runs in the worker: the module, the opened model and its sessions. What the plan of the
// device says is done here, and what fails on the device is left for the next best.
import { aborted, asDibitError, fail } from './errors.js';
import { disabledIn, Features } from './features.js';
import { Gpu } from './gpu.js';
import { backendOf, newDevice, openBest } from './gpu_engine.js';
import { loadModel } from './load.js';
import { Session } from './session.js';
import { chooseModules, countThreads, endThreads, instantiate, startThreads } from './wasm.js';

const SEED = 20240607; // of the self-test's data

export class Engine {
    sessions = new Map(); // number -> Session
    #next = 1;
    losses = 0; // of the GPU's device
    choices; // modules that may still be tried, best first

    /**
     * @param {object} o what createEngine() was given, its urls made absolute, and device, stamp and
     *   features: texts of the page
     * @param {{ progress, warn, features, signal }} host where to tell what
     */
    static async open(o, host) {
        const engine = new Engine();
        Object.assign(engine, { o, host });
        engine.choices = chooseModules(o, disabledIn(o.stamp, o.features));
        if (o.backend === 'webgpu' && engine.choices[0].module !== 'gpu')
            host.warn({ type: 'unsupported', message: 'no WebGPU here, or it failed too often' });
        try {
            await engine.#openAny();
            return { engine, number: engine.#add(engine.#createSession()) };
        } catch (e) {
            engine.end();
            throw e;
        }
    }

    async #openAny() {
        this.host.progress({ loaded: 0, total: 0, stage: 'module' });
        const wasm = this.start();
        wasm.catch(() => {}); // reported where it is awaited
        const { o, host } = this, { signal } = host;
        const model = await this.#pickVariant(o.model, wasm);
        this.image = await loadModel({ model, store: o.store, wasm, signal, onProgress: host.progress, warn: host.warn,
            plan: parts => this.#planned(parts) });
        const { size } = this.image;
        host.progress({ loaded: size, total: size, stage: 'open' });
        await openBest(this);
        if (signal.aborted) throw aborted(signal);
    }

    // ---- the module ----

    async start() {
        for (;;) {
            const choice = this.choices[0] ?? fail('unsupported', 'no module of the engine works in this browser');
            try {
                return await this.#tryModule(choice);
            } catch (e) {
                if (this.choices.length === 1 || e.type === 'download') throw e;
                this.leave(asDibitError(e));
            }
        }
    }

    /** The module in use is not tried again; the record hears what it had that the next one has not. */
    leave(error) {
        const [left] = this.choices.splice(0, 1), next = this.choices[0];
        const lost = error.details?.slow ? [] : left.needs.filter(n => !next?.needs.includes(n));
        for (const name of lost) this.features?.result(name, false);
        if (this.features) this.host.features(this.features.text);
        this.host.warn({ type: 'unsupported', message: `${left.module} is left for ${next?.module}: ${error.message}` });
    }

    async #tryModule({ module, threads, needs }) {
        const budget = this.o.memory_budget ?? Infinity;
        const compiled = await compile(this.o.wasmUrls[module]);
        const gpu = module === 'gpu' ? await Gpu.open({ software: this.o.backend === 'webgpu' }) : undefined;
        const wasm = this.wasm = await instantiate(compiled, budget, gpu);
        this.features = new Features(wasm, this.o.stamp, this.features?.text ?? this.o.features);
        this.path = { backend: gpu ? 'webgpu' : 'wasm', module: `dibit-${module}`, threads };
        const wrong = selfTest(wasm);
        if (wrong) fail('unsupported', `its self-test fails: ${wrong}`);
        if (!gpu) for (const name of needs) this.features.result(name, true); // a GPU is tried with the model
        this.host.features(this.features.text);
        return wasm;
    }

    // ---- the plan ----

    #request(more = []) {
        const { memory_budget: budget, n_ctx, cache_type_k, cache_type_v } = this.o;
        const lines = { n_ctx, cache_type_k, cache_type_v, n_threads: this.o.n_threads, backend: this.path.backend,
            budget_mb: budget && Math.max(1, Math.floor(budget / 2 ** 20)), disabled: this.features.disabled || undefined };
        return [...Object.entries(lines).filter(([, v]) => v !== undefined).map(line => line.join('=')), ...more].join('\n');
    }

    #planLines(parts, more) {
        const device = this.o.device + (this.wasm.gpu ? 'webgpu=true\n' : ''); // the page's probe may have been late
        const lines = this.wasm.lines('dibit_plan_text', device, parts, this.#request(more));
        return lines.map(([key, value, reason]) => ({ key, value, reason }));
    }

    /** What the model takes, judged before its bytes come, by the first bytes of its files. */
    #planned(parts) {
        const plan = this.#planLines(parts), get = key => plan.find(line => line.key === key);
        const number = key => Number(get(key).value);
        if (get('need')) return { need: number('need'), part: Number(get('need').reason) };
        this.replan = () => this.#planned(parts);
        this.plan = [...this.variantPlan ?? [], ...plan];
        if (get('fits').value === 'no')
            fail('out_of_memory', `${number('total')} bytes are needed, the budget is ${number('budget')} ` +
                `(${get('budget').reason}); a smaller n_ctx, smaller cache types or a smaller file need less`,
            { needed: number('total'), available: number('budget') });
        this.settings = { n_ctx: number('n_ctx'), cache_type_k: get('cache_type_k').value,
            cache_type_v: get('cache_type_v').value };
        this.path.threads = Math.min(this.path.threads, number('n_threads'));
        this.sleep_ms = number('sleep_ms');
        if (parts[0].size !== undefined) return {};
        return { file: Number(this.wasm.lines('dibit_peek', parts, '').find(([key]) => key === 'file')[1]) };
    }

    /** Of a manifest (model.json) the file that suits this device; any other model is itself. */
    async #pickVariant(model, wasm) {
        if (typeof model !== 'string' || !/\.json(?=$|[?#])/.test(model)) return model;
        const manifest = await readManifest(model, this.host.signal);
        await wasm;
        const lines = manifest.variants.map(v => `variant=${v.file} bytes=${v.bytes}${v.kld === undefined ? '' : ` kld=${v.kld}`}` +
            Object.entries(v.types ?? {}).map(([group, type]) => ` ${group}=${type}`).join(''));
        const plan = this.#planLines([], lines), picked = plan.find(line => line.key === 'variant');
        if (!picked || !manifest.variants.some(v => v.file === picked.value))
            fail('out_of_memory', `none of the ${lines.length} files of ${model} fits: ${picked?.reason ?? ''}`);
        this.variantPlan = [picked];
        return new URL(picked.value, model).href;
    }

    // ---- the model ----

    closeModel() {
        const w = this.wasm;
        if (!this.ptr) return;
        w.setU32(w.out, this.ptr);
        w.x.dibit_close(w.out);
        this.ptr = 0;
    }

    /** Opens the images for the CPU of the module that is there, or for its GPU; a pointer. */
    openImages(fields) {
        const w = this.wasm;
        return w.scoped(put => {
            const { images } = this.image, size = w.at.DibitImage;
            const list = put(new Uint8Array(size * images.length)), options = put(new Uint8Array(w.at.DibitOptions));
            images.forEach((image, i) => w.set('DibitImage', list + i * size, { data: image.ptr, size: image.size }));
            w.set('DibitOptions', options, { n_threads: this.path.threads, ...fields });
            w.ok(w.x.dibit_open_images(w.out, list, images.length, options, w.err));
            return w.u32(w.out);
        });
    }

    async openModel() {
        const w = this.wasm;
        if (w.shared) {
            startThreads(w, this.path.threads - 1);
            this.path.threads = await countThreads(w);
        }
        this.ptr = this.openImages(w.gpu ? backendOf(w) : { repack_in_place: 1 });
        this.info = this.#readInfo();
        this.path.isa = this.info.isa;
    }

    #readInfo() {
        const w = this.wasm;
        return w.scoped(put => {
            const p = put(new Uint8Array(w.at.DibitModelInfo)), info = {};
            w.x.dibit_model_info(this.ptr, p);
            for (const name of ['architecture', 'name', 'chat_template', 'isa'])
                info[name] = w.text(w.get('DibitModelInfo', p, name) >>> 0);
            for (const name of ['n_vocab', 'n_ctx_train', 'n_layers', 'n_params', 'weight_bytes'])
                info[name] = w.get('DibitModelInfo', p, name);
            return { ...info, file_bytes: this.image.size };
        });
    }

    // ---- sessions ----

    #createSession() {
        return new Session(this, Session.create(this.wasm, this.ptr, this.settings));
    }

    #add(session) {
        this.sessions.set(this.#next, session);
        return this.#next++;
    }

    session(number) {
        return this.sessions.get(number) ?? fail('aborted', 'the engine was destroyed');
    }

    clone(number) {
        return this.#add(this.session(number).fork());
    }

    free(number) {
        const session = this.session(number);
        this.sessions.delete(number);
        session.last.then(() => session.free());
    }

    memory(number) {
        const { weights, kv, scratch } = this.session(number).memory();
        const wasm = this.wasm.memory.buffer.byteLength;
        return { weights, kv, scratch, wasm, peak: Math.max(wasm, this.image.peak) };
    }

    // ---- what fails, and how long things take ----

    /** Milliseconds of a token, for the record of this device. */
    took(operation, ms) {
        this.features.time(operation, ms);
        this.host.features(this.features.text);
    }

    /**
     * After a trap in the module: the next best one takes over, with the model loaded again and empty
     * sessions in place of the old ones. Throws the error where nothing is left to try. Errors with
     * `moved` are those of other sessions, whose module went away under them.
     */
    recover(e) {
        if (e.moved) return this.recovering;
        const lost = e.type === 'device_lost' && this.wasm?.gpu;
        const again = this.choices.length > 1 && !(this.o.model instanceof Object && this.o.model.stream === true);
        if (!lost && (!(e instanceof WebAssembly.RuntimeError) || !again)) throw e;
        const error = asDibitError(e);
        this.recovering ??= (lost ? newDevice(this, error) : this.#reopen(error)).finally(() => { this.recovering = null; });
        return this.recovering;
    }

    async #reopen(error) {
        this.leave(error);
        endThreads(this.wasm);
        this.wasm.gpu?.end();
        this.ptr = 0;
        this.wasm = this.image = null; // before the new one takes its memory
        for (const session of this.sessions.values()) session.lose();
        await this.#openAny();
        for (const session of this.sessions.values()) session.take(Session.create(this.wasm, this.ptr, this.settings));
    }

    /** Ends the threads; memory goes with the worker. */
    end() {
        endThreads(this.wasm);
    }
}

/** The names of the kernels that give other results than plain C, or ''. */
function selfTest(w) {
    return w.scoped(put => {
        const p = put(new Uint8Array(512));
        const wrong = w.ok(w.x.dibit_self_test(SEED, p, 512));
        return wrong ? w.text(p).trim() || `${wrong} wrong results` : '';
    });
}

async function download(url, signal, cache) {
    let response;
    try {
        response = await fetch(url, { signal, cache });
    } catch (e) {
        if (signal?.aborted) throw aborted(signal);
        fail('download', `${url}: ${e.message}`);
    }
    return response.ok ? response : fail('download', `${url}: the server answered ${response.status}`);
}

async function readManifest(url, signal) {
    let manifest;
    try {
        // without a network the browser's own copy will do
        const response = await download(url, signal).catch(e => download(url, signal, 'force-cache').catch(() => { throw e; }));
        manifest = await response.json();
    } catch (e) {
        throw e.type ? e : asDibitError(e, 'format');
    }
    const good = v => typeof v?.file === 'string' && !/[\s=]/.test(v.file) && v.bytes > 0;
    if (!Array.isArray(manifest?.variants) || !manifest.variants.length || !manifest.variants.every(good))
        fail('format', `${url}: "variants" must be a list of { file, bytes, kld, types }`);
    return manifest;
}

async function compile(url) {
    const response = await download(url);
    // Servers that do not know the type of .wasm are common: only the right one may be streamed.
    return /^application\/wasm/.test(response.headers.get('content-type') ?? '')
        ? WebAssembly.compileStreaming(response)
        : WebAssembly.compile(await response.arrayBuffer());
}
