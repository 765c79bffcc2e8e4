// index.js - the package's interface, which runs in the page: it starts the worker and passes calls to
// it. Types and what each call does: index.d.ts.
import { chunks, optionsOf, whole } from './chat.js';
import { Client } from './client.js';
import { detect, deviceText, wasmFeatures } from './detect.js';
import { aborted, DibitError, fail } from './errors.js';
import { Kept, openStore } from './store.js';
export { DibitError };

const MODULES = { // one thread and more, without relaxed SIMD and with it
    simd: new URL('./dibit-simd.wasm', import.meta.url).href,
    threads: new URL('./dibit-threads.wasm', import.meta.url).href,
    relaxed1: new URL('./dibit-relaxed1.wasm', import.meta.url).href,
    relaxed: new URL('./dibit-relaxed.wasm', import.meta.url).href,
    gpu: new URL('./dibit-gpu.wasm', import.meta.url).href,
};

const PATIENCE_S = 30; // a call of the engine that opens a large model may take seconds

function startWorker(o) {
    if (o.worker) return o.worker;
    if (o.workerUrl) return new Worker(o.workerUrl, { type: 'module' });
    // Written so, bundlers find the worker and pack it.
    return new Worker(new URL('./worker.js', import.meta.url), { type: 'module' });
}

// Of the engine's threads, which the page starts for it; thread.js lies beside worker.js.
function startThread(o) {
    if (o.workerUrl) return new Worker(new URL('thread.js', absolute(o.workerUrl)), { type: 'module' });
    return new Worker(new URL('./thread.js', import.meta.url), { type: 'module' });
}

const absolute = url => new URL(url, globalThis.document?.baseURI ?? globalThis.location?.href).href;

/** The folder that the modules lie in, or each one's url. */
function moduleUrls(wasmUrl) {
    if (!wasmUrl) return MODULES;
    if (typeof wasmUrl === 'object' && !(wasmUrl instanceof URL))
        return Object.fromEntries(Object.entries(wasmUrl).map(([k, v]) => [k, absolute(v)]));
    const folder = absolute(wasmUrl).replace(/\/?$/, '/');
    return Object.fromEntries(Object.keys(MODULES).map(k => [k, `${folder}dibit-${k}.wasm`]));
}

const isStream = m => typeof ReadableStream === 'function' && m instanceof ReadableStream;

/** The model as it can be sent: urls are absolute, a stream is pumped by this side. */
function modelOf(model) {
    if (Array.isArray(model) && model.length) return model.map(modelOf);
    if (model instanceof URL) return model.href;
    if (typeof model === 'string') return absolute(model);
    if (model instanceof Blob) return model;
    if (isStream(model)) return { stream: true };
    return fail('argument', 'model must be a url, a Blob or File, a ReadableStream, or a list of shards');
}

// Each chunk is taken before the next is read. The last call says how it ended.
async function pump(client, stream) {
    const reader = stream.getReader();
    try {
        for (;;) {
            const { done, value } = await reader.read();
            await client.call('chunk', { done, data: value });
            if (done) return;
        }
    } catch (e) {
        await client.call('chunk', { done: true, error: String(e?.message ?? e) }).catch(() => {});
        await reader.cancel(e).catch(() => {});
    }
}

/** What the worker asks of a store that is an object of the page. */
const asker = store => (op, key, bytes) => {
    if (!['get', 'set', 'delete'].includes(op)) fail('internal', `a store has no ${op}`);
    return store[op](key, bytes);
};

// What has failed here is remembered between visits; a page that has no such storage forgets.
const RECORD = 'dibit-features';
const record = {
    get() {
        try {
            return localStorage.getItem(RECORD) ?? '';
        } catch {
            return '';
        }
    },
    set(text) {
        try {
            localStorage.setItem(RECORD, text);
        } catch { /* forgotten */ }
    },
};

/** The browser and its version: what another version could not do counts for that one alone. */
const stamp = () => (globalThis.navigator?.userAgent?.match(/(Edg|OPR|Firefox|Chrome|Version)\/\d+/g) ?? ['browser']).join(' ');

/** What this browser and device can do, by probes: the names are those of detect.js. */
export const capabilities = () => detect();

/** Whether a model can run here: 'unavailable', 'downloadable', or 'available' when it is in the store. */
export async function availability({ model, store } = {}) {
    if (!wasmFeatures().wasm_simd) return 'unavailable';
    if (typeof model !== 'string' && !(model instanceof URL)) return model ? 'available' : 'downloadable';
    const opened = await openStore(store);
    if (!opened) return 'downloadable';
    const kept = await Kept.open(opened, modelOf(model), () => {});
    await kept.look();
    return kept.complete ? 'available' : 'downloadable';
}

export async function createEngine(o = {}) {
    if (o.signal?.aborted) throw aborted(o.signal);
    const { n_ctx, cache_type_k, cache_type_v, n_threads, memory_budget, backend } = o;
    const own = typeof o.store === 'object' && o.store !== null;
    const options = { n_ctx, cache_type_k, cache_type_v, n_threads, memory_budget, backend,
        model: modelOf(o.model), store: own ? 'page' : o.store, wasmUrls: moduleUrls(o.wasmUrl) };
    const warnings = [], warning = w => {
        warnings.push(w);
        o.onProgress?.({ stage: 'warning', warning: w });
    };
    const client = new Client(startWorker(o), o.watchdog_s ?? PATIENCE_S,
        { ask: own ? asker(o.store) : undefined, thread: () => startThread(o), features: record.set, warning });
    try {
        const device = deviceText(await detect({ patience_ms: 1000 }));
        Object.assign(options, { device, stamp: stamp(), features: record.get() });
        const opening = client.call('open', { options }, { event: o.onProgress, signal: o.signal });
        if (isStream(o.model)) pump(client, o.model);
        return new Engine({ client, engines: new Set(), warnings }, await opening);
    } catch (e) {
        client.end(e);
        throw e;
    }
}

class Engine {
    #shared; #session; #window; #usage;
    #running = new Set(); // controllers of streams
    chat = { completions: { create: body => this.#chat(body) } };

    constructor(shared, opened) {
        this.#shared = shared;
        this.#session = opened.session;
        this.#window = opened.contextWindow;
        this.#usage = opened.contextUsage;
        this.info = opened.info;
        this.path = opened.path;
        this.plan = opened.plan;
        this.warnings = shared.warnings;
        shared.engines.add(this);
    }

    get contextWindow() {
        return this.#window;
    }

    get contextUsage() {
        return this.#usage;
    }

    #call(op, args, how) {
        return this.#shared.client.call(op, { session: this.#session, ...args }, how);
    }

    generate(prompt, options = {}) {
        if (typeof prompt !== 'string') fail('argument', 'the prompt must be a string');
        return this.#stream({ ...options, prompt });
    }

    // Tokens come as events of one call; an iteration that ends early ends the call.
    async *#stream(options, started = () => {}) {
        const { signal, ...plain } = options, control = new AbortController(), tokens = [];
        const stop = () => control.abort(signal.reason);
        if (signal?.aborted) throw aborted(signal);
        this.#running.add(control);
        signal?.addEventListener('abort', stop);
        let wake, ended = false, error, prompt = 0;
        const event = e => {
            if (e.started) {
                started(e.started);
                prompt = this.#usage = e.started.prompt_tokens;
            }
            if (e.token) {
                tokens.push(e.token);
                this.#usage = prompt + e.token.tokens_generated;
            }
            if ('contextUsage' in e) this.#usage = e.contextUsage;
            if (e.path) this.path = e.path;
            wake?.();
        };
        this.#call('generate', { options: plain }, { event, signal: control.signal })
            .catch(e => { error = e; }).then(() => { ended = true; wake?.(); });
        try {
            for (;;) {
                if (error?.type === 'aborted') throw error;
                if (tokens.length) yield tokens.shift();
                else if (error) throw error;
                else if (ended) return;
                else await new Promise(resolve => { wake = resolve; });
            }
        } finally {
            signal?.removeEventListener('abort', stop);
            this.#running.delete(control);
            control.abort();
        }
    }

    async #chat(body) {
        if (!Array.isArray(body?.messages) || !body.messages.length)
            fail('argument', 'messages must be a list of { role, content }');
        let counts;
        const options = optionsOf(body);
        const tokens = this.#stream(options, usage => { counts = usage; });
        const model = body.model ?? (this.info.name || this.info.architecture);
        return body.stream ? chunks(tokens, body, model, () => counts) : whole(tokens, model, () => counts);
    }

    measureContextUsage(text) {
        return this.#call('measure', { text: String(text) });
    }

    memory() {
        return this.#call('memory');
    }

    async clone() {
        const { session } = await this.#call('clone');
        return new Engine(this.#shared, { session, contextWindow: this.#window, contextUsage: this.#usage,
            info: this.info, path: this.path, plan: this.plan });
    }

    /** Frees this engine; with the last of its clones the worker ends too. */
    destroy() {
        const { client, engines } = this.#shared;
        if (!engines.delete(this)) return;
        const error = new DibitError('aborted', 'the engine was destroyed');
        if (engines.size === 0) return client.end(error);
        for (const control of this.#running) control.abort(error);
        this.#call('free').catch(() => {});
    }
}
