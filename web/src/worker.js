// worker.js - the dedicated worker in which all of the engine's work is done. Messages in:
// { id, op, ...arguments }; messages out: { id, event } any number of times, then once { id, result }
// or { id, error }. { op: 'abort', id } ends the call of that id.
import { asDibitError, pack } from './errors.js';
import { Engine } from './engine.js';

const calls = new Map(); // id -> AbortController
let engine = null;

const operations = {
    async open(m, signal, event) {
        const made = await Engine.open(m.options, event, signal);
        engine = made.engine;
        const { n_ctx, n_past } = engine.session(made.number).memory();
        return { session: made.number, info: engine.info, path: engine.path, plan: [],
            contextWindow: n_ctx, contextUsage: n_past };
    },
    generate(m, signal, event) {
        const session = engine.session(m.session);
        return session.queue(async () => {
            const started = usage => event({ started: usage }), emit = token => event({ token });
            try {
                await session.generate(m.options, signal, started, emit);
            } finally {
                if (session.ptr) event({ contextUsage: session.memory().n_past });
            }
        });
    },
    clone(m) {
        const session = engine.session(m.session);
        return session.queue(() => ({ session: engine.clone(m.session) }));
    },
    measure: m => engine.session(m.session).measure(m.text),
    memory: m => engine.memory(m.session),
    free: m => engine.free(m.session),
    ping: () => {},
};

self.onmessage = async ({ data: m }) => {
    if (m.op === 'abort') return calls.get(m.id)?.abort();
    const control = new AbortController();
    calls.set(m.id, control);
    try {
        const result = await operations[m.op](m, control.signal, event => self.postMessage({ id: m.id, event }));
        self.postMessage({ id: m.id, result });
    } catch (e) {
        self.postMessage({ id: m.id, error: pack(asDibitError(e)) });
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
