// engine.js - runs in the worker: the opened model and its sessions.
import { fail } from './errors.js';
import { loadImage, openSource } from './load.js';
import { Session } from './session.js';
import { instantiate } from './wasm.js';

export class Engine {
    sessions = new Map(); // number -> Session
    #next = 1;

    /** @param {object} o what createEngine() was given, its urls made absolute */
    static async open(o, onProgress, signal) {
        const engine = new Engine();
        onProgress({ loaded: 0, total: 0, stage: 'module' });
        engine.wasm = await instantiate(await compile(o.wasmUrls.simd));
        engine.path = { backend: 'wasm', module: 'dibit-simd', threads: 1 };
        engine.image = await loadImage(engine.wasm, await openSource(o.model, signal), onProgress, signal);
        onProgress({ loaded: engine.image.size, total: engine.image.size, stage: 'open' });
        engine.#openModel();
        return { engine, number: engine.#add(Session.create(engine.wasm, engine.ptr, o)) };
    }

    #openModel() {
        const w = this.wasm, { ptr, size } = this.image;
        w.scoped(put => {
            const options = put(new Uint8Array(w.at.DibitOptions));
            w.set('DibitOptions', options, { n_threads: this.path.threads });
            w.ok(w.x.dibit_open_memory(w.out, ptr, size, options, w.err));
        });
        this.ptr = w.u32(w.out);
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
