// worker.js - the dedicated worker in which all of the engine's work is done. Messages in:
// { id, op, ...arguments }; messages out: { id, event } any number of times, then once { id, result }
// or { id, error }. { op: 'abort', id } ends the call of that id.
import { asDibitError, fail, pack } from './errors.js';
import { Engine } from './engine.js';
import { threadFailed } from './wasm.js';

const calls = new Map(); // id -> AbortController
let engine = null, inlet = null;
let broken = null; // a trap in the module leaves its memory in an unknown state: nothing more is done there

/** A stream that the page pumps: each chunk's call is answered when the chunk is taken. */
class Inlet {
    #full; #taken = () => {};
    #item = new Promise(resolve => { this.#full = resolve; });

    put(item) {
        return new Promise(resolve => {
            this.#taken = resolve;
            this.#full(item);
        });
    }

    async *[Symbol.asyncIterator]() {
        for (;;) {
            const { done, data, error } = await this.#item;
            this.#item = new Promise(resolve => { this.#full = resolve; });
            this.#taken();
            if (error) fail('download', `the stream failed: ${error}`);
            if (done) return;
            yield data;
        }
    }
}

/** A store that is an object of the page: questions, which it answers. */
const questions = new Map();
const ask = (...args) => new Promise((resolve, reject) => {
    const id = questions.size ? Math.max(...questions.keys()) + 1 : 1;
    questions.set(id, { resolve, reject });
    self.postMessage({ ask: id, args });
});
const pageStore = { get: key => ask('get', key), set: (key, bytes) => ask('set', key, bytes.slice()),
    delete: key => ask('delete', key) };

function answered({ id, result, error }) {
    const { resolve, reject } = questions.get(id);
    questions.delete(id);
    if (error) reject(Object.assign(new Error(error.message), { name: error.name }));
    else resolve(result);
}

const operations = {
    async open(m, signal, event) {
        const o = m.options;
        if (o.store === 'page') o.store = pageStore;
        if (o.model.stream === true) o.model = inlet = new Inlet();
        const made = await Engine.open(o, { signal, progress: event,
            warn: warning => self.postMessage({ warning: pack(warning) }),
            features: text => self.postMessage({ features: text }) });
        engine = made.engine;
        const { n_ctx, n_past } = engine.session(made.number).memory();
        return { session: made.number, info: engine.info, path: engine.path, plan: engine.plan,
            contextWindow: n_ctx, contextUsage: n_past };
    },
    generate(m, signal, event) {
        const session = engine.session(m.session);
        return session.queue(async () => {
            const started = usage => event({ started: usage }), emit = token => event({ token });
            try {
                await session.generate(m.options, signal, started, emit);
            } finally {
                if (session.ptr && session.wasm) event({ contextUsage: session.memory().n_past, path: engine.path });
            }
        });
    },
    clone(m) {
        const session = engine.session(m.session);
        return session.queue(() => ({ session: engine.clone(m.session) }));
    },
    chunk: m => inlet.put(m),
    measure: m => engine.session(m.session).measure(m.text),
    memory: m => engine.memory(m.session),
    free: m => engine.free(m.session),
    ping: () => {},
};

self.onmessage = async ({ data: m }) => {
    if (m.op === 'abort') return calls.get(m.id)?.abort();
    if (m.op === 'answer') return answered(m);
    if (m.op === 'thread') return threadFailed(m.id);
    const control = new AbortController();
    calls.set(m.id, control);
    try {
        await engine?.recovering?.catch(() => {});
        if (broken) throw broken;
        const result = await operations[m.op](m, control.signal, event => self.postMessage({ id: m.id, event }));
        self.postMessage({ id: m.id, result });
    } catch (e) {
        const error = asDibitError(e);
        if (e instanceof WebAssembly.RuntimeError) broken = error;
        self.postMessage({ id: m.id, error: pack(error) });
    }
    calls.delete(m.id);
};

// Whoever waits for this lock knows at once when the worker has ended, however that came about.
const lock = `dibit-worker-${crypto.randomUUID?.() ?? Math.random()}`;
if (self.navigator?.locks)
    navigator.locks.request(lock, () => {
        self.postMessage({ ready: true, lock });
        return new Promise(() => {});
    }).catch(() => self.postMessage({ ready: true }));
else self.postMessage({ ready: true });
