// session.js - runs in the worker: one conversation of the engine. Work is done in pieces of some
// milliseconds; between them the worker's events are served, which is how an abort arrives.
import { aborted, fail } from './errors.js';
import { StopFilter } from './text.js';

const ADD_BOS = 1, PARSE_SPECIAL = 2; // of dibit.h
const PIECE_MS = 30; // of prefill between two looks at what has come in
const MAX_PIECE = 64; // tokens of a piece: more would be no faster here, and take more scratch

const encoder = new TextEncoder();

// setTimeout(0) would take 4 ms a turn; a message to oneself takes microseconds. (Under node such
// messages go before all others.)
const channel = new MessageChannel(), waiting = [];
channel.port1.onmessage = () => waiting.shift()();
channel.port1.unref?.();
const turn = () => new Promise(resolve => {
    if (globalThis.setImmediate) return setImmediate(resolve);
    waiting.push(resolve);
    channel.port2.postMessage(0);
});

export class Session {
    last = Promise.resolve(); // the work that is going on: the next waits for it
    pieceTokens = 16;
    life = 0; // of these in the module: work of an earlier one ends
    ptr = 0;

    constructor(engine, ptr) {
        this.engine = engine;
        this.take(ptr);
    }

    static create(w, enginePtr, options) {
        return w.scoped(put => {
            const o = put(new Uint8Array(w.at.DibitSessionOptions));
            w.set('DibitSessionOptions', o, { n_ctx: options.n_ctx ?? 0, n_batch: MAX_PIECE });
            for (const side of ['k', 'v'])
                if (options[`cache_type_${side}`])
                    w.set('DibitSessionOptions', o, { [`cache_${side}`]: put(options[`cache_type_${side}`]) });
            w.ok(w.x.dibit_session_create(w.out, enginePtr, o, w.err));
            return w.u32(w.out);
        });
    }

    /** From now on this session of the engine's module is meant. */
    take(ptr) {
        const w = this.wasm = this.engine.wasm;
        this.ptr = ptr;
        this.life++;
        this.piece = w.struct('DibitPiece');
        this.memoryStruct = w.struct('DibitMemory');
        this.sampling = w.struct('DibitSampling');
    }

    /** The module is gone, and everything in it. */
    lose() {
        this.life++;
        this.wasm = null;
    }

    fork() {
        const w = this.wasm;
        w.ok(w.x.dibit_fork(w.out, this.ptr, w.err));
        return new Session(this.engine, w.u32(w.out));
    }

    free() {
        const w = this.wasm;
        if (!this.ptr || !w) return;
        w.setU32(w.out, this.ptr);
        w.x.dibit_session_free(w.out);
        for (const p of [this.piece, this.memoryStruct, this.sampling]) w.x.free(p);
        this.life++;
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
    static tokens({ wasm: w, ptr }, text, flags, fn) {
        const bytes = encoder.encode(text);
        return w.scoped(put => {
            const p = put(bytes.length ? bytes : new Uint8Array(1));
            let cap = bytes.length + 8, ids, n;
            const encode = () => {
                ids = put(new Uint8Array(4 * cap));
                n = w.ok(w.x.dibit_tokenize(ptr, p, bytes.length, flags, ids, cap, w.err));
            };
            encode();
            if (n > cap) { // spaces without a token of their own become three
                cap = n;
                encode();
            }
            return fn(ids, n);
        });
    }

    measure(text) {
        return Session.tokens(this.engine, text, PARSE_SPECIAL, (ids, n) => n);
    }

    chatText(messages) {
        const w = this.wasm;
        return w.scoped(put => {
            const size = w.at.DibitMessage, list = put(new Uint8Array(size * messages.length || 1));
            messages.forEach((m, i) => w.set('DibitMessage', list + i * size,
                { role: put(String(m.role)), content: put(String(m.content)) }));
            const write = (buf, cap) => w.ok(w.x.dibit_chat_text(this.engine.ptr, 0, list, messages.length,
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

    /** Gives the worker's events a turn; throws where one of them was an abort, or the module went. */
    async #turn(signal, life, ms = 0) {
        await (ms > 0 ? new Promise(resolve => setTimeout(resolve, ms)) : turn());
        this.#stay(signal, life);
    }

    /** The result of a call; one whose result the GPU has not got yet is made again when it has. */
    #ask(name, signal, ...args) {
        const { wasm: w, life } = this, call = () => w.ok(w.x[name](this.ptr, ...args, w.err));
        return w.gpu ? w.gpu.ask(call, () => this.#stay(signal, life)) : call();
    }

    #stay(signal, life) {
        if (signal.aborted) throw aborted(signal);
        if (this.life !== life) throw Object.assign(new Error('the module was left'), { moved: true });
    }

    /** Makes the session hold these tokens (Int32Array), in pieces. Returns how many it held already. */
    async #prefill(tokens, signal) {
        const w = this.wasm, { life } = this, n = tokens.length, ids = w.malloc(4 * n);
        w.bytes.set(new Uint8Array(tokens.buffer, 0, 4 * n), ids);
        const held = this.#common(ids, n);
        for (let at = held; ;) {
            const k = Math.min(n - at, this.pieceTokens), begin = performance.now();
            const first = at === held, last = at + k === n;
            try {
                // logits, which sync computes, are wanted of the last token alone
                if (first || last) await this.#ask('dibit_sync', signal, ids, at + k);
                else await this.#ask('dibit_forward', signal, ids + 4 * at, k, 0);
                await w.gpu?.idle(); // what was asked of it is to be done within a piece's time
                at += k;
                if (!last) await this.#turn(signal, life);
            } catch (e) {
                if (!e.moved && !(e instanceof WebAssembly.RuntimeError)) w.x.free(ids);
                throw e;
            }
            if (last) {
                w.x.free(ids);
                return held;
            }
            const ms = performance.now() - begin, fit = k * PIECE_MS / Math.max(ms, 0.1);
            this.pieceTokens = Math.max(1, Math.min(MAX_PIECE, fit > 8 ? fit & ~3 : fit | 0));
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

    #check(o, n) {
        const { n_ctx } = this.memory();
        if (n > n_ctx)
            fail('context_full', `the prompt has ${n} tokens, the context has ${n_ctx}`, { requested: n, available: n_ctx });
        if (n === 0) fail('argument', 'the prompt is empty: there is nothing to continue');
        if (!(o.max_new_tokens === undefined || (Number.isInteger(o.max_new_tokens) && o.max_new_tokens >= 0)))
            fail('argument', `max_new_tokens: ${o.max_new_tokens} is not a whole number from 0`);
        if ([o.stop ?? []].flat().some(s => typeof s !== 'string')) fail('argument', 'stop: a text, or a list of them');
    }

    /**
     * Continues o.prompt, or the conversation o.messages.
     * @param {(usage: object) => void} started called when the prompt is computed
     * @param {(token: object) => void} emit called for each token
     */
    async generate(o, signal, started, emit) {
        if (signal.aborted) throw aborted(signal);
        signal.addEventListener('abort', () => this.wasm?.gpu?.wake());
        const chat = o.messages !== undefined, text = chat ? this.chatText(o.messages) : o.prompt;
        const ids = Session.tokens(this.engine, text, chat ? ADD_BOS | PARSE_SPECIAL : ADD_BOS,
            (p, n) => Array.from(new Int32Array(this.wasm.slice(p, 4 * n).buffer)));
        this.#check(o, ids.length);
        const run = { ids, emit, signal, started, count: 0, max: o.max_new_tokens ?? Infinity,
            filter: new StopFilter([o.stop ?? []].flat()), reason: null };
        for (;;) {
            try {
                return await this.#run(o, run);
            } catch (e) {
                await this.engine.recover(e); // throws e where nothing can be done; else goes on from run.ids
            }
        }
    }

    async #run(o, run) {
        const { life } = this, n = run.ids.length;
        this.#setSampling(o);
        const cached = await this.#prefill(Int32Array.from(run.ids), run.signal);
        run.started?.({ prompt_tokens: n, cached_tokens: Math.min(cached, n) });
        run.started = null;
        if (run.max <= run.count) return;
        const begin = performance.now(), from = run.count;
        do {
            await this.#next(run);
            if (!run.reason) await this.#turn(run.signal, life, this.engine.sleep_ms);
        } while (!run.reason);
        if (run.count - from >= 16) this.engine.took('decode', (performance.now() - begin) / (run.count - from));
    }

    // One token.
    async #next(run) {
        const w = this.wasm, going = await this.#ask('dibit_next', run.signal, this.piece);
        const get = name => w.get('DibitPiece', this.piece, name);
        const text = w.text(get('text') >>> 0, get('n_bytes')), token_id = get('id');
        run.count += going;
        if (going) run.ids.push(token_id);
        if (!going) run.reason = w.text(get('finish') >>> 0);
        else if (run.count >= run.max) run.reason = 'length';
        const token = run.filter.push(text, run.reason !== null);
        if (run.filter.stopped) run.reason = 'stop';
        run.emit({ token, token_id, tokens_generated: run.count, finished: run.reason !== null, finish_reason: run.reason });
    }
}
