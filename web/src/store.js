// store.js - runs in the worker: where models are kept between visits. A store is a map with get(key),
// set(key, bytes) and delete(key), which may be asynchronous: the browser's own files (OPFS), its Cache
// API, or an object of the page's. Keys are "name/0", "name/1" ... for the chunks of a file, each of
// CHUNK bytes but the last, and "name/manifest".
import { asDibitError } from './errors.js';

export const CHUNK = 1 << 20;
const PATIENCE_MS = 15000;
const FOLDER = 'dibit';

const encoder = new TextEncoder(), decoder = new TextDecoder();

/** Private files of the origin: one for a model's chunks, one for its manifest. */
export class OpfsStore {
    #files = new Map(); // name -> open handle

    static async open() {
        const root = await navigator.storage.getDirectory();
        const store = new OpfsStore();
        store.folder = await root.getDirectoryHandle(FOLDER, { create: true });
        return store;
    }

    // Readers share a file where the browser knows how; where it does not, a second one gets null and
    // reads through a File instead.
    async #handle(name, write) {
        const open = this.#files.get(name);
        if (open && (open.write || !write)) return open.handle;
        open?.handle.close();
        this.#files.delete(name);
        const file = await this.folder.getFileHandle(name, { create: write });
        const handle = await file.createSyncAccessHandle({ mode: write ? 'readwrite' : 'read-only' });
        this.#files.set(name, { handle, write });
        return handle;
    }

    /** Reads into `into` where it is given, which saves a copy. */
    async get(key, into) {
        const [name, part] = key.split('/');
        try {
            if (part === 'manifest') {
                const file = await (await this.folder.getFileHandle(`${name}.json`)).getFile();
                return new Uint8Array(await file.arrayBuffer());
            }
            const at = part * CHUNK, to = into ?? new Uint8Array(CHUNK);
            let n;
            try {
                n = (await this.#handle(name, false)).read(to, { at });
            } catch (e) {
                if (e.name !== 'NoModificationAllowedError' && e.name !== 'TypeError') throw e;
                const file = await (await this.folder.getFileHandle(name)).getFile();
                const data = new Uint8Array(await file.slice(at, at + to.length).arrayBuffer());
                to.set(data);
                n = data.length;
            }
            return n === to.length ? to : to.subarray(0, n);
        } catch (e) {
            if (e.name === 'NotFoundError') return null;
            throw e;
        }
    }

    async set(key, bytes) {
        const [name, part] = key.split('/');
        if (part !== 'manifest') {
            const handle = await this.#handle(name, true), at = part * CHUNK;
            if (handle.write(bytes, { at }) < bytes.length)
                throw Object.assign(new Error('the disk is full'), { name: 'QuotaExceededError' });
            return;
        }
        this.#files.get(name)?.handle.flush(); // before a manifest says that it is there
        const file = await this.folder.getFileHandle(`${name}.json`, { create: true });
        const handle = await file.createSyncAccessHandle();
        try {
            handle.truncate(0);
            handle.write(bytes, { at: 0 });
            handle.flush();
        } finally {
            handle.close();
        }
    }

    /** The file goes with its manifest. */
    async delete(key) {
        const [name, part] = key.split('/');
        if (part !== 'manifest') return;
        this.close(name);
        for (const file of [`${name}.json`, name])
            await this.folder.removeEntry(file).catch(e => { if (e.name !== 'NotFoundError') throw e; });
    }

    close(name) {
        this.#files.get(name)?.handle.close();
        this.#files.delete(name);
    }
}

/** The Cache API, where there are no private files: an entry for each key. */
export class CacheStore {
    static async open() {
        const store = new CacheStore();
        store.cache = await caches.open(FOLDER);
        return store;
    }

    #url = key => new URL(`/.dibit/${key}`, self.location.href).href;

    async get(key) {
        const response = await this.cache.match(this.#url(key));
        return response ? new Uint8Array(await response.arrayBuffer()) : null;
    }

    set(key, bytes) {
        return this.cache.put(this.#url(key), new Response(bytes));
    }

    delete(key) {
        return this.cache.delete(this.#url(key));
    }
}

/** The store of this name, or the best there is; null: nothing is kept. */
export async function openStore(kind) {
    if (kind === 'memory') return null;
    if (typeof kind === 'object') return kind;
    const ways = { opfs: OpfsStore, cache: CacheStore };
    for (const name of kind ? [kind] : ['opfs', 'cache']) {
        try {
            return await ways[name].open();
        } catch { // not there, or not allowed in a private window
            continue;
        }
    }
    return null;
}

const hex = buffer => Array.from(new Uint8Array(buffer), b => b.toString(16).padStart(2, '0')).join('');

/** What a store answers. One that does not (Chromium's own files have been seen to) counts as broken. */
function answer(promise) {
    let timer;
    const late = new Promise((_, reject) => {
        timer = setTimeout(() => reject(new Error('the store does not answer')), PATIENCE_MS);
    });
    return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** Of a chunk; '' where the page is not a secure context and there is no such function. */
async function digest(bytes) {
    const subtle = globalThis.crypto?.subtle;
    if (!subtle) return '';
    // A copy is made by digest() itself, except of shared memory, which it does not take.
    const plain = bytes.buffer instanceof ArrayBuffer ? bytes : bytes.slice();
    return hex(await subtle.digest('SHA-256', plain));
}

/** The name under which a url is kept: readable, and no two alike. */
async function nameOf(url) {
    const tail = new URL(url).pathname.split('/').pop().replace(/[^\w.-]/g, '_').slice(-60);
    const id = await digest(encoder.encode(url));
    return `${(id || encodeURIComponent(url).replace(/\W/g, '_')).slice(0, 24)}-${tail}`;
}

/**
 * One file in a store: which chunks are there, and of which version of the file. The manifest names the
 * hash of each; one with `complete` is written when all of them are there.
 */
export class Kept {
    hashes = [];
    complete = false;
    #dirty = 0;

    /** @param {(warning: Error) => void} warn told once, when the store takes no more */
    static async open(store, url, warn) {
        const kept = new Kept();
        Object.assign(kept, { store, warn, url, name: await nameOf(url) });
        return kept;
    }

    /** Looks again at what is there: another tab may have written it. */
    async look() {
        this.hashes = [];
        this.complete = false;
        try {
            const m = JSON.parse(decoder.decode(await answer(this.store.get(`${this.name}/manifest`)) ?? new Uint8Array()));
            if (m.version !== 1 || m.url !== this.url || m.chunk !== CHUNK || !(m.size > 0) || !Array.isArray(m.hashes)) return;
            this.labels = { etag: m.etag, modified: m.modified, size: m.size };
            this.hashes = m.hashes;
            this.complete = m.complete === true && m.hashes.length === Math.ceil(m.size / CHUNK);
        } catch { /* no manifest, or half of one: nothing is there */ }
    }

    /** Bytes of the whole chunks that are said to be there. */
    get bytes() {
        return this.complete ? this.labels.size : this.hashes.length * CHUNK;
    }

    /** Chunk i into place; false: it is not what was written. */
    async read(i, into) {
        const key = `${this.name}/${i}`, got = await answer(this.store.get(key, into));
        if (!got || got.length !== into.length) return false;
        if (got !== into) into.set(got);
        return await digest(into) === this.hashes[i];
    }

    /** Takes chunk i, in order. A store that is full or broken is left, with a warning. */
    async write(i, bytes, labels) {
        if (!this.store) return;
        this.labels = labels;
        try {
            // Not every store can take memory that threads share.
            const own = this.store instanceof OpfsStore || bytes.buffer instanceof ArrayBuffer;
            await answer(this.store.set(`${this.name}/${i}`, own ? bytes : bytes.slice()));
            this.hashes[i] = await digest(bytes);
            if (++this.#dirty >= 8) await this.save();
        } catch (e) {
            await this.#leave(e);
        }
    }

    /** Writes the manifest; `complete` last of all. */
    async save(complete = false) {
        if (!this.store || !this.labels?.size || (!complete && !this.#dirty)) return;
        this.#dirty = 0;
        const manifest = { version: 1, url: this.url, ...this.labels, chunk: CHUNK, hashes: this.hashes, complete };
        try {
            await answer(this.store.set(`${this.name}/manifest`, encoder.encode(JSON.stringify(manifest))));
        } catch (e) {
            await this.#leave(e);
        }
    }

    async #leave(e) {
        await this.remove();
        this.store = null;
        this.warn(asDibitError(e, 'internal'));
    }

    async remove() {
        const chunks = Math.ceil((this.labels?.size ?? 0) / CHUNK);
        this.hashes = [];
        this.complete = false;
        try {
            await answer(this.store?.delete(`${this.name}/manifest`));
            for (let i = 0; i < chunks; i++) await answer(this.store?.delete(`${this.name}/${i}`));
        } catch { /* without a manifest it is never believed, and it is overwritten */ }
    }

    close() {
        this.store?.close?.(this.name);
    }
}

/**
 * Holds the lock of a name and returns the function that gives it up. Tabs that want the same file wait
 * for the one that fetches it.
 */
export async function lock(name, mode, signal) {
    const locks = globalThis.navigator?.locks;
    if (!locks) return () => {};
    return new Promise((resolve, reject) => {
        locks.request(`dibit-model-${name}`, { mode, signal },
            () => new Promise(release => resolve(release))).catch(reject);
    });
}
