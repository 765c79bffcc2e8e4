// engine.js - runs in the worker: the opened model and its sessions.
import { aborted, fail } from './errors.js';
import { loadModel } from './load.js';
import { Session } from './session.js';
import { chooseModule, countThreads, instantiate } from './wasm.js';

export class Engine {
    sessions = new Map(); // number -> Session
    #next = 1;
    repack = true;

    /**
     * @param {object} o what createEngine() was given, its urls made absolute
     * @param {(progress: object) => void} onProgress @param {(warning: object) => void} warn
     */
    static async open(o, onProgress, warn, signal) {
        const engine = new Engine();
        onProgress({ loaded: 0, total: 0, stage: 'module' });
        const wasm = engine.#start(o);
        wasm.catch(() => {}); // reported where it is awaited
        try {
            engine.image = await loadModel({ model: o.model, store: o.store, wasm, signal, onProgress, warn,
                plan: (head, size, rest) => engine.#plan(o, head, size, rest) });
            const { size } = engine.image;
            onProgress({ loaded: size, total: size, stage: 'open' });
            await engine.#openModel();
            if (signal.aborted) throw aborted(signal);
            return { engine, number: engine.#add(Session.create(engine.wasm, engine.ptr, o)) };
        } catch (e) {
            engine.end();
            throw e;
        }
    }

    async #start(o) {
        const { module, threads } = chooseModule(o);
        this.path = { backend: 'wasm', module: `dibit-${module}`, threads };
        this.budget = o.memory_budget ?? Infinity;
        this.wasm = await instantiate(await compile(o.wasmUrls[module]), { threads, budget: this.budget });
        return this.wasm;
    }

    /**
     * What the model takes, checked against the budget before its bytes come. Opening makes copies of q4
     * and q8 rows that are a quarter faster to use, where there is room for them.
     */
    #plan(o, head, size, rest) {
        if (rest) return this.#fits({ total: size + rest }); // shards
        const request = { n_ctx: o.n_ctx, n_threads: this.path.threads,
            cache_type_k: o.cache_type_k, cache_type_v: o.cache_type_v };
        const text = Object.entries(request).filter(([, v]) => v !== undefined).map(line => line.join('=')).join('\n');
        const said = Object.fromEntries(this.wasm.lines('dibit_peek', head, size ?? 0, text));
        if (said.need) return Number(said.need);
        const total = Number(said.total), copies = Number(said.repacked);
        this.repack = total + this.wasm.memory.buffer.byteLength <= this.budget;
        return this.#fits({ file: Number(said.file), total: this.repack ? total : total - copies });
    }

    #fits(need) {
        const { total } = need, own = this.wasm.memory.buffer.byteLength;
        if (total + own > this.budget)
            fail('out_of_memory', `the model, its context and the engine need ${total + own} bytes, the budget is ` +
                `${this.budget}; a smaller context (n_ctx) or smaller cache types need less`,
            { needed: total + own, available: this.budget });
        return need;
    }

    async #openModel() {
        const w = this.wasm;
        if (w.threads.length) this.path.threads = await countThreads(w);
        w.scoped(put => {
            const { images } = this.image, size = w.at.DibitImage;
            const list = put(new Uint8Array(size * images.length)), options = put(new Uint8Array(w.at.DibitOptions));
            images.forEach((image, i) => w.set('DibitImage', list + i * size, { data: image.ptr, size: image.size }));
            w.set('DibitOptions', options, { n_threads: this.path.threads, repack_in_place: 1 });
            w.ok(w.x.dibit_open_images(w.out, list, images.length, options, w.err));
        });
        this.ptr = w.u32(w.out);
        this.info = this.#readInfo();
        this.path.isa = this.info.isa;
    }

    /** Ends the threads; memory goes with the worker. */
    end() {
        for (const { worker } of this.wasm?.threads ?? []) worker.terminate();
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
}

async function compile(url) {
    let response;
    try {
        response = await fetch(url);
    } catch (e) {
        fail('download', `${url}: ${e.message}`);
    }
    if (!response.ok) fail('download', `${url}: the server answered ${response.status}`);
    // Servers that do not know the type of .wasm are common: only the right one may be streamed.
    return /^application\/wasm/.test(response.headers.get('content-type') ?? '')
        ? WebAssembly.compileStreaming(response)
        : WebAssembly.compile(await response.arrayBuffer());
}
