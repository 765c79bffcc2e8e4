// load.js - runs in the worker: brings a model's file, or its shards, into the module's memory, chunk by
// chunk into the place where it stays. Besides that place only the chunk that has just come takes memory;
// from there it is hashed and written to the store.
import { aborted, fail } from './errors.js';
import { Changed, Remote } from './remote.js';
import { CHUNK, Kept, lock, openStore } from './store.js';

const AT_ONCE = 3; // shards in flight
const PATIENCE_MS = 3000; // to hear whether a file that is there has changed; then it is taken as it is

const within = (promise, ms) => Promise.race([promise, new Promise(resolve => setTimeout(resolve, ms, null))]);

function joined(chunks) {
    const out = new Uint8Array(chunks.reduce((n, c) => n + c.length, 0));
    let at = 0;
    for (const c of chunks) {
        out.set(c, at);
        at += c.length;
    }
    return out;
}

/** A Blob's bytes, so many at a time that no large copy is made. */
async function* slices(blob, signal) {
    for (let at = 0; at < blob.size; at += CHUNK) {
        if (signal.aborted) throw aborted(signal);
        yield new Uint8Array(await blob.slice(at, at + CHUNK).arrayBuffer());
    }
}

/** A file of the model: where it comes from, what of it is known, and its place. */
class Part {
    size = undefined; // bytes, where it is known
    waiting = [];     // chunks of the stream that came before the file had a place
    #release = () => {};

    constructor(source, load) {
        this.load = load;
        this.source = source;
        this.name = typeof source === 'string' ? source : source.name ?? 'the stream';
        if (typeof source !== 'string') {
            this.size = source.size;
            const chunks = source instanceof Blob ? slices(source, load.signal) : source;
            this.stream = chunks[Symbol.asyncIterator]();
        }
    }

    /** Remembers which file it was that had changed. */
    async noting(work) {
        try {
            return await work;
        } catch (e) {
            this.changed = e instanceof Changed;
            throw e;
        }
    }

    /** Finds out what is there already and how large the file is. */
    async look(alone) {
        if (typeof this.source !== 'string') return;
        const { store, signal } = this.load;
        this.kept = store && /^https?:/.test(this.source) ? await Kept.open(store, this.source, this.load.warn) : null;
        if (this.kept) await this.#lookInStore();
        this.remote = new Remote(this.source, signal, this.kept?.labels, !this.kept);
        this.size = this.remote.size;
        if (this.kept?.complete) this.said = this.remote.head().catch(() => null);
        else if (alone || this.#there > 0) await this.connect();
        else this.size ??= (await this.remote.head())?.size;
        if (this.size === undefined && !this.stream) await this.connect();
    }

    async #lookInStore() {
        const { kept } = this, { signal, tell } = this.load;
        this.#release = await lock(kept.name, 'shared', signal);
        await kept.look();
        if (kept.complete) return;
        this.#release(); // one of those who want it fetches it, the others wait
        const late = setTimeout(() => tell('waiting'), 100);
        try {
            this.#release = await lock(kept.name, 'exclusive', signal);
        } finally {
            clearTimeout(late);
        }
        await kept.look();
    }

    get #there() {
        return this.kept?.bytes ?? 0;
    }

    async connect() {
        if (this.stream || this.kept?.complete) return;
        await this.remote.open(this.#there);
        this.size = this.remote.size;
        this.stream = this.remote.chunks(this.#there);
        if (this.#there === 0) await this.#checkQuota();
    }

    // What cannot fit is not begun.
    async #checkQuota() {
        const { quota, usage } = (this.kept && await navigator.storage?.estimate?.()) || {};
        if (!(this.size > quota - usage)) return;
        this.load.warn({ type: 'quota', message: `${this.size} bytes are more than the storage that is left, ${quota - usage}` });
        this.kept.store = null;
    }

    /** The first n bytes of the file, or more; fewer where it has not so many. */
    async head(n) {
        if (this.#there) {
            const size = Math.min(this.#there, Math.ceil(n / CHUNK) * CHUNK), out = new Uint8Array(size);
            for (let at = 0; at < size; at += CHUNK) await this.#readKept(at, out.subarray(at, at + CHUNK));
            if (n <= size || this.kept.complete) return out;
            return joined([out, ...await this.#pull(n - size)]);
        }
        // Of other shards no connection is held while the plan is made: a browser has few of them.
        return this.stream ? joined(await this.#pull(n)) : this.remote.peek(n);
    }

    async #pull(n) {
        let have = this.waiting.reduce((m, c) => m + c.length, 0);
        while (have < n) {
            const { done, value } = await this.stream.next();
            if (done) break;
            this.waiting.push(value);
            have += value.length;
        }
        return this.waiting;
    }

    async #readKept(at, into) {
        if (this.load.signal.aborted) throw aborted(this.load.signal);
        if (!await this.kept.read(at / CHUNK, into)) throw new Changed();
    }

    /** Brings the file to ptr. */
    async fill(ptr) {
        const { wasm, came } = this.load;
        let at = 0;
        for (const end = this.#there; at < end;) {
            const n = Math.min(CHUNK, end - at);
            await this.#readKept(at, wasm.bytes.subarray(ptr + at, ptr + at + n));
            at += n;
            came(n, 'cache');
        }
        if (this.kept?.complete) return this.#confirm();
        await this.connect();
        for (let chunk; (chunk = await this.#next());) {
            if (chunk.length > this.size - at)
                fail('download', `${this.name}: more came than the ${this.size} bytes that it has`);
            wasm.bytes.set(chunk, ptr + at);
            at += chunk.length;
            came(chunk.length, 'download');
            await this.#keep(ptr, at);
        }
        if (this.guessed && this.size - at < 32) this.size = at; // the padding at the end may be missing
        if (at < this.size)
            fail('download', `${this.name}: ended after ${at} of ${this.size} bytes`, { loaded: at, total: this.size });
        await this.kept?.save(true);
    }

    async #next() {
        if (this.load.signal.aborted) throw aborted(this.load.signal);
        return this.waiting.shift() ?? (await this.stream.next()).value;
    }

    // Writes the chunks of the store that have become whole.
    async #keep(ptr, at) {
        const { kept } = this, { etag, modified, size } = this.remote ?? {};
        while (kept?.store) {
            const i = kept.hashes.length, begin = i * CHUNK, end = Math.min(begin + CHUNK, this.size);
            if (begin >= this.size || end > at) return;
            await kept.write(i, this.load.wasm.bytes.subarray(ptr + begin, ptr + end), { etag, modified, size });
        }
    }

    async #confirm() {
        const said = await within(this.said, PATIENCE_MS);
        if (said && !this.remote.same(said)) throw new Changed();
    }

    /** Gives everything up but what came; what came is kept for the next time. */
    async close() {
        await this.stream?.return?.();
        if (this.kept && !this.kept.complete) await this.kept.save();
        this.kept?.close();
        this.#release();
    }
}

/** The names of all shards where a url names one of them. */
export function shardsOf(url) {
    const match = /-(\d{5})-of-(\d{5})\.gguf(?=$|[?#])/.exec(url);
    if (!match || Number(match[2]) < 2) return [url];
    return Array.from({ length: Number(match[2]) }, (_, i) => url.replace(match[0],
        `-${String(i + 1).padStart(5, '0')}-of-${match[2]}.gguf`));
}

function partsOf(model, load) {
    const sources = Array.isArray(model) ? model : typeof model === 'string' ? shardsOf(model) : [model];
    return sources.map(source => new Part(source, load));
}

async function inTurn(tasks, atOnce) {
    const left = tasks.values();
    const work = async () => { for (const task of left) await task(); };
    await Promise.all(Array.from({ length: atOnce }, work));
}

/**
 * Loads a model; returns { ptr, images: [{ ptr, size }], size, peak }.
 * @param {object} o model, store: as of createEngine; wasm: a promise of the module; signal;
 *   plan([{ head, size }]): called with the first bytes of the files, and with more of them while it returns
 *   { need, part }: bytes of that part; throws what does not fit; returns { file }, the size where unknown;
 *   onProgress({ loaded, total, stage }); warn({ type, message })
 */
export async function loadModel(o) {
    const store = await openStore(o.store);
    for (let n = 0; ; n++) {
        try {
            return await loadOnce(o, store);
        } catch (e) {
            if (!(e instanceof Changed)) throw e;
            if (n === 2) fail('download', 'the file changes while it is fetched');
        }
    }
}

async function loadOnce(o, store) {
    let loaded = 0, total = 0, largest = 0;
    const tell = stage => o.onProgress({ loaded, total, stage });
    const control = new AbortController(), stop = () => control.abort(o.signal.reason);
    o.signal.addEventListener('abort', stop);
    if (o.signal.aborted) stop();
    const load = { store, signal: control.signal, warn: o.warn, tell,
        came(n, stage) {
            loaded += n;
            largest = Math.max(largest, n);
            tell(stage);
        } };
    const parts = partsOf(o.model, load);
    let ptr = 0;
    try {
        await inTurn(parts.map(part => () => part.noting(part.look(parts.length === 1))), AT_ONCE);
        await parts[0].connect();
        load.wasm = await o.wasm;
        await planned(parts, o.plan);
        total = parts.reduce((n, part) => n + part.size, 0);
        const places = placesOf(parts);
        ptr = load.wasm.malloc(places.size);
        for (const image of places.images) image.ptr = ptr + image.at;
        await inTurn(parts.map((part, i) => () => part.noting(part.fill(places.images[i].ptr))), AT_ONCE);
        parts.forEach((part, i) => { places.images[i].size = part.size; });
        return { ptr, images: places.images, size: total, peak: load.wasm.memory.buffer.byteLength + largest + CHUNK };
    } catch (e) {
        control.abort();
        if (ptr) load.wasm.x.free(ptr);
        for (const part of parts) if (part.changed) await part.kept?.remove();
        throw o.signal.aborted ? aborted(o.signal) : e;
    } finally {
        o.signal.removeEventListener('abort', stop);
        for (const part of parts) await part.close().catch(() => {});
    }
}

// The headers are asked what the model takes; where nobody said how large a file is, it is what its header
// says.
async function planned(parts, plan) {
    const want = parts.map(() => 1 << 16), heads = [];
    for (let asked = parts; ;) {
        for (const part of asked) {
            const i = parts.indexOf(part), head = heads[i] = await part.noting(part.head(want[i]));
            if (head.length < Math.min(want[i], part.size ?? Infinity))
                fail('format', `${part.name}: ends inside its header`);
            if (!head.length) fail('format', `${part.name}: the file is empty`);
        }
        const said = plan(parts.map((part, i) => ({ head: heads[i], size: part.size })));
        if (!said.need) {
            parts[0].guessed = parts[0].size === undefined;
            parts[0].size ??= said.file;
            return;
        }
        if (said.need <= heads[said.part].length || said.need > (parts[said.part].size ?? Infinity)) fail('format', `${parts[said.part].name}: ends inside its header`);
        want[said.part] = said.need;
        asked = [parts[said.part]];
    }
}

// All files in one block, each at a multiple of 64.
function placesOf(parts) {
    let size = 0;
    const images = parts.map(part => {
        const image = { at: size, size: part.size };
        size += Math.ceil(part.size / 64) * 64;
        return image;
    });
    return { images, size };
}
