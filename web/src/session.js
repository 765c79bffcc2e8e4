// session.js - runs in the worker: one conversation of the engine. Work is done in pieces of some
// milliseconds; between them the worker's events are served, which is how an abort arrives.
import { aborted, fail } from './errors.js';
import { StopFilter } from './text.js';

const ADD_BOS = 1, PARSE_SPECIAL = 2; // of dibit.h
const PIECE_MS = 30; // of prefill between two looks at what has come in
const MAX_PIECE = 64; // tokens of a piece: more would be no faster here, and take more scratch

const encoder = new TextEncoder();

// setTimeout(0) would take 4 ms a turn; a message to oneself takes microseconds.
const channel = new MessageChannel(), waiting = [];
channel.port1.onmessage = () => waiting.shift()();
export const turn = () => new Promise(resolve => {
    waiting.push(resolve);
    channel.port2.postMessage(0);
});

export class Session {
    /** @param {import('./wasm.js').Wasm} wasm */
    constructor(wasm, engine, ptr) {
        this.wasm = wasm;
        this.engine = engine;
        this.ptr = ptr;
        this.last = Promise.resolve(); // the work that is going on: the next waits for it
        this.pieceTokens = 16;
        this.piece = wasm.struct('DibitPiece');
        this.memoryStruct = wasm.struct('DibitMemory');
        this.sampling = wasm.struct('DibitSampling');
    }

    static create(wasm, engine, options) {
        const w = wasm;
        return w.scoped(put => {
            const o = put(new Uint8Array(w.at.DibitSessionOptions));
            w.set('DibitSessionOptions', o, { n_ctx: options.n_ctx ?? 0, n_batch: MAX_PIECE });
            for (const side of ['k', 'v'])
                if (options[`cache_type_${side}`])
                    w.set('DibitSessionOptions', o, { [`cache_${side}`]: put(options[`cache_type_${side}`]) });
            w.ok(w.x.dibit_session_create(w.out, engine, o, w.err));
            return new Session(w, engine, w.u32(w.out));
        });
    }

    fork() {
        const w = this.wasm;
        w.ok(w.x.dibit_fork(w.out, this.ptr, w.err));
        return new Session(w, this.engine, w.u32(w.out));
    }

    free() {
        const w = this.wasm;
        if (!this.ptr) return;
        w.setU32(w.out, this.ptr);
        w.x.dibit_session_free(w.out);
        for (const p of [this.piece, this.memoryStruct, this.sampling]) w.x.free(p);
        this.ptr = 0;
    }

    /** Lets the tasks of a session follow each other. */
    queue(task) {
        const run = this.last.then(() => {
            if (!this.ptr) fail('aborted', 'the engine was destroyed');
            return task();
        });
        this.last = run.catch(() => {});
        return run;
    }

    memory() {
        const w = this.wasm, m = this.memoryStruct;
        w.x.dibit_memory(this.ptr, m);
        const get = name => w.get('DibitMemory', m, name) >>> 0;
        return { weights: get('weights'), kv: get('kv'), scratch: get('scratch'),
            n_ctx: get('n_ctx'), n_past: get('n_past') };
    }

    /** The text's ids, in the module's memory: fn(pointer, count). */
    tokens(text, flags, fn) {
        const w = this.wasm, bytes = encoder.encode(text);
        return w.scoped(put => {
            const p = put(bytes.length ? bytes : new Uint8Array(1));
            const cap = bytes.length + 8; // no token has fewer than one byte; BOS and the like
            const ids = put(new Uint8Array(4 * cap));
            const n = w.ok(w.x.dibit_tokenize(this.engine, p, bytes.length, flags, ids, cap, w.err));
            return fn(ids, n);
        });
    }

    measure(text) {
        return this.tokens(text, PARSE_SPECIAL, (ids, n) => n);
    }

    chatText(messages) {
        const w = this.wasm;
        return w.scoped(put => {
            const size = w.at.DibitMessage, list = put(new Uint8Array(size * messages.length || 1));
            messages.forEach((m, i) => w.set('DibitMessage', list + i * size,
                { role: put(String(m.role)), content: put(String(m.content)) }));
            const write = (buf, cap) => w.ok(w.x.dibit_chat_text(this.engine, 0, list, messages.length,
                1, buf, cap, w.err));
            const n = write(0, 0), buf = put(new Uint8Array(n + 1));
            write(buf, n + 1);
            return w.text(buf, n);
        });
    }

    /** How many of the n ids at `ids` the session begins with. */
    #common(ids, n) {
        const w = this.wasm, have = Math.min(n, w.x.dibit_tokens(this.ptr, w.out)), p = w.u32(w.out);
        let i = 0;
        while (i < have && w.u32(p + 4 * i) === w.u32(ids + 4 * i)) i++;
        return i;
    }

    /** Makes the session hold the n tokens at `ids`, in pieces. Returns how many it held already. */
    async #prefill(ids, n, signal) {
        const w = this.wasm, held = this.#common(ids, n);
        for (let at = held; ;) {
            if (signal.aborted) throw aborted(signal);
            const k = Math.min(n - at, this.pieceTokens), begin = performance.now();
            const first = at === held, last = at + k === n;
            // logits, which sync computes, are wanted of the last token alone
            if (first || last) w.ok(w.x.dibit_sync(this.ptr, ids, at + k, w.err));
            else w.ok(w.x.dibit_forward(this.ptr, ids + 4 * at, k, 0, w.err));
            at += k;
            if (last) return held;
            const ms = performance.now() - begin, fit = k * PIECE_MS / Math.max(ms, 0.1);
            this.pieceTokens = Math.max(1, Math.min(MAX_PIECE, fit > 8 ? fit & ~3 : fit | 0));
            await turn();
        }
    }

    #setSampling(o) {
        const w = this.wasm;
        w.set('DibitSampling', this.sampling, {
            temperature: o.temperature ?? 0.8, top_k: o.top_k ?? 40, top_p: o.top_p ?? 0.95,
            min_p: o.min_p ?? 0.05, repeat_penalty: o.repeat_penalty ?? 0,
            seed: o.seed ?? crypto.getRandomValues(new BigUint64Array(1))[0],
        });
        w.ok(w.x.dibit_set_sampling(this.ptr, this.sampling, w.err));
    }

    /**
     * Continues o.prompt, or the conversation o.messages.
     * @param {(usage: object) => void} started called when the prompt is computed
     * @param {(token: object) => void} emit called for each token
     */
    async generate(o, signal, started, emit) {
        const w = this.wasm, chat = o.messages !== undefined;
        if (!(o.max_new_tokens === undefined || (Number.isInteger(o.max_new_tokens) && o.max_new_tokens >= 0)))
            fail('argument', `max_new_tokens: ${o.max_new_tokens} is not a whole number from 0`);
        if ([o.stop ?? []].flat().some(s => typeof s !== 'string')) fail('argument', 'stop: a text, or a list of them');
        const text = chat ? this.chatText(o.messages) : o.prompt;
        const ids = this.tokens(text, chat ? ADD_BOS | PARSE_SPECIAL : ADD_BOS, (p, n) => w.slice(p, 4 * n));
        const n = ids.length / 4, n_ctx = this.memory().n_ctx;
        if (n > n_ctx)
            fail('context_full', `the prompt has ${n} tokens, the context has ${n_ctx}`,
                { requested: n, available: n_ctx });
        if (n === 0) fail('argument', 'the prompt is empty: there is nothing to continue');
        this.#setSampling(o);
        const at = w.malloc(ids.length);
        w.bytes.set(ids, at);
        let cached;
        try {
            cached = await this.#prefill(at, n, signal);
        } finally {
            w.x.free(at);
        }
        started({ prompt_tokens: n, cached_tokens: Math.min(cached, n) });
        return this.#decode(o, signal, n, emit);
    }

    async #decode(o, signal, n_prompt, emit) {
        const w = this.wasm, max = o.max_new_tokens ?? Infinity, filter = new StopFilter([o.stop ?? []].flat());
        let count = 0, reason = max <= 0 ? 'length' : null;
        while (!reason) {
            if (signal.aborted) throw aborted(signal);
            const going = w.ok(w.x.dibit_next(this.ptr, this.piece, w.err));
            const get = name => w.get('DibitPiece', this.piece, name);
            const text = w.text(get('text') >>> 0, get('n_bytes')), id = get('id');
            count += going;
            if (!going) reason = w.text(get('finish') >>> 0);
            else if (count >= max) reason = 'length';
            const token = filter.push(text, reason !== null);
            if (filter.stopped) reason = 'stop';
            emit({ token, token_id: id, tokens_generated: count, finished: reason !== null,
                finish_reason: reason });
            if (!reason) await turn();
        }
        return { finish_reason: reason, prompt_tokens: n_prompt, completion_tokens: count };
    }
}
