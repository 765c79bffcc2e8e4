// client.js - runs in the page: calls to the worker. Every call settles: by its answer, by an abort, or,
// when the worker has ended or is silent, by an error that says so.
import { aborted, DibitError, unpack } from './errors.js';

const TICK_MS = 1000; // a question to a worker that has calls to answer

export class Client {
    #calls = new Map(); // id -> { resolve, reject, event }
    #next = 1;
    #dead = null; // the error of every call from now on
    #silent = 0;  // questions without an answer, of any kind
    #timer = 0;
    #watch = new AbortController();
    #threads = []; // workers that lend the engine their threads

    /**
     * @param {Worker} worker @param {number} patience seconds that the worker may be silent
     * @param {{ ask?: Function, thread?: Function, features?: Function, warning?: Function }} host what the worker
     *   asks of the page, a new worker of thread.js, the record that it wants kept, and what it warns of
     */
    constructor(worker, patience, host) {
        this.host = host;
        this.worker = worker;
        this.patience = patience;
        worker.onmessage = ({ data }) => this.#answer(data);
        worker.onerror = e => {
            e.preventDefault?.();
            this.end(new DibitError('internal', `the worker failed: ${e.message ?? 'it could not be started'}`));
        };
        worker.onmessageerror = () => this.end(new DibitError('internal', 'a message of the worker could not be read'));
    }

    #answer(m) {
        this.#silent = 0;
        if (m.lock) this.#watchLock(m.lock);
        if (m.ask) this.#reply(m.ask, m.args);
        if (m.thread) this.#startThread(m.thread);
        if (m.endThreads) this.#endThreads();
        if (m.features) this.host.features?.(m.features);
        if (m.warning) this.host.warning?.(m.warning);
        const call = this.#calls.get(m.id);
        if (!call) return;
        if ('event' in m) return call.event?.(m.event);
        this.#settle(m.id);
        if (m.error) call.reject(unpack(m.error));
        else call.resolve(m.result);
    }

    async #reply(id, args) {
        const said = {};
        try {
            said.result = await this.host.ask(...args);
        } catch (e) {
            said.error = { name: e?.name, message: String(e?.message ?? e) };
        }
        if (!this.#dead) this.worker.postMessage({ op: 'answer', id, ...said });
    }

    #startThread({ id, port }) {
        const thread = this.host.thread();
        thread.onerror = e => {
            e.preventDefault?.();
            if (!this.#dead) this.worker.postMessage({ op: 'thread', id });
        };
        thread.postMessage({ port }, [port]);
        this.#threads.push(thread);
    }

    #endThreads() {
        for (const thread of this.#threads.splice(0)) thread.terminate();
    }

    #settle(id) {
        this.#calls.delete(id);
        if (this.#calls.size === 0) this.#stopTimer();
    }

    #stopTimer() {
        clearInterval(this.#timer);
        this.#timer = 0;
    }

    // The worker holds a lock for as long as it lives.
    #watchLock(name) {
        globalThis.navigator?.locks?.request(name, { signal: this.#watch.signal }, () =>
            this.end(new DibitError('internal', 'the worker was ended'))).catch(() => {});
    }

    // Turns are counted, not time: a page that slept has not waited for an answer.
    #tick() {
        if (++this.#silent > this.patience)
            return this.end(new DibitError('internal', `the worker has been silent for ${this.patience} s`));
        this.worker.postMessage({ id: 0, op: 'ping' });
    }

    /**
     * @param {string} op @param {object} args
     * @param {{ event?: (e: any) => void, signal?: AbortSignal, transfer?: Transferable[] }} [how]
     */
    call(op, args = {}, { event, signal, transfer } = {}) {
        if (this.#dead) return Promise.reject(this.#dead);
        if (signal?.aborted) return Promise.reject(aborted(signal));
        const id = this.#next++;
        const abort = () => {
            const call = this.#calls.get(id);
            if (!call) return;
            this.worker.postMessage({ op: 'abort', id });
            this.#settle(id);
            call.reject(aborted(signal));
        };
        const answer = new Promise((resolve, reject) => {
            this.worker.postMessage({ ...args, id, op }, transfer ?? []); // throws what cannot be sent
            this.#calls.set(id, { resolve, reject, event });
        });
        if (!this.#timer) {
            this.#silent = 0;
            this.#timer = setInterval(() => this.#tick(), TICK_MS);
        }
        signal?.addEventListener('abort', abort);
        return answer.finally(() => signal?.removeEventListener('abort', abort));
    }

    /** Ends the worker; all that was waiting, and all that will be asked, fails with this error. */
    end(error) {
        if (this.#dead) return;
        this.#dead = error;
        this.#stopTimer();
        this.#watch.abort();
        this.worker.terminate();
        this.#endThreads();
        for (const call of this.#calls.values()) call.reject(error);
        this.#calls.clear();
    }
}
