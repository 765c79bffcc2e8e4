// remote.js - a file on a server, read from any byte on. A connection that breaks is taken up again
// where it broke; a file that has changed meanwhile is noticed and never mixed with what came before.
import { aborted, asDibitError, DibitError, fail } from './errors.js';

const RETRIES = 3; // in a row, without a byte coming
const PAUSE_MS = 300; // before the first; doubled each time

/** The file is not the one that was begun: all of it must be fetched anew. */
export class Changed extends Error {}

const pause = (ms, signal) => new Promise(resolve => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener('abort', () => { clearTimeout(timer); resolve(); }, { once: true });
});

/** The chunks of a stream, which is given back when the reader leaves or `signal` aborts. */
async function* read(stream, signal) {
    const reader = stream.getReader();
    const stop = () => { reader.cancel().catch(() => {}); };
    signal.addEventListener('abort', stop);
    try {
        for (;;) {
            const { done, value } = await reader.read();
            if (signal.aborted) throw aborted(signal);
            if (done) return;
            yield value;
        }
    } finally {
        signal.removeEventListener('abort', stop);
        stop();
    }
}

const number = text => (/^\d+$/.test(text ?? '') ? Number(text) : undefined);

export class Remote {
    /**
     * @param {string} url
     * @param {{ etag?: string, modified?: string, size?: number }} [known] of an earlier visit
     * @param {boolean} [cached] the browser's own cache may keep the file
     */
    constructor(url, signal, known = {}, cached = false) {
        Object.assign(this, { url, signal, cached, etag: known.etag, modified: known.modified, size: known.size });
        this.type = '';
    }

    #error(text, details) {
        return new DibitError('download', `${this.url}: ${text}`, details);
    }

    async #fetch(init) {
        try {
            return await fetch(this.url, { ...init, signal: this.signal, ...(!this.cached && { cache: 'no-store' }) });
        } catch (e) {
            if (this.signal.aborted) throw aborted(this.signal);
            throw new DibitError('download', `${this.url}: ${e.message}`, { network: 1 }, { cause: e });
        }
    }

    /** What the server says about the file, or null where it cannot be asked. */
    async head() {
        try {
            const r = await this.#fetch({ method: 'HEAD' });
            // a page in the file's place says nothing about the file
            return r.ok && !/^text\/html/.test(r.headers.get('content-type') ?? '') ? this.#labels(r) : null;
        } catch (e) {
            if (this.signal.aborted) throw e;
            return null;
        }
    }

    #labels(response) {
        const h = response.headers, coded = h.get('content-encoding');
        return { etag: h.get('etag') ?? undefined, modified: h.get('last-modified') ?? undefined,
            size: coded ? undefined : number(h.get('content-length')), type: h.get('content-type') ?? '' };
    }

    /** Whether these labels can be of the file that is known here. */
    same(labels) {
        if (labels.size !== undefined && this.size !== undefined && labels.size !== this.size) return false;
        if (this.etag && labels.etag) return this.etag === labels.etag;
        return !(this.modified && labels.modified) || this.modified === labels.modified;
    }

    #conditions(at) {
        if (at === 0) return {};
        const strong = this.etag && !this.etag.startsWith('W/') ? this.etag : this.modified;
        return { Range: `bytes=${at}-`, ...(strong && { 'If-Range': strong }) };
    }

    /** A response that begins at byte `at` or, where the server knows no ranges, at 0. */
    async #request(at) {
        const headers = this.#conditions(at);
        let r;
        try {
            r = await this.#fetch({ headers });
        } catch (e) {
            // Another origin may forbid If-Range; the labels of the answer are compared anyway.
            if (!headers['If-Range'] || this.signal.aborted) throw e;
            r = await this.#fetch({ headers: { Range: headers.Range } });
        }
        if (at > 0 && (r.status === 416 || (r.ok && !this.#continues(r, at)))) {
            r.body?.cancel().catch(() => {});
            throw new Changed();
        }
        if (!r.ok || !r.body)
            throw this.#error(`the server answered ${r.status}`, { status: r.status });
        return r;
    }

    #continues(r, at) {
        const labels = this.#labels(r);
        if (r.status !== 206) // the whole file again: only a label can say that it is the same one
            return (this.etag || this.modified) && this.same(labels);
        const range = /^bytes (\d+)-\d*\/(\d+|\*)/.exec(r.headers.get('content-range') ?? '');
        if (range && Number(range[1]) !== at) return false;
        labels.size = range && number(range[2]);
        return this.same(labels);
    }

    /** Asks for the file from byte `at` on; its size and labels are then known as far as they are said. */
    async open(at) {
        this.first = await this.#retry(() => this.#request(at));
        if (at === 0) Object.assign(this, this.#labels(this.first));
    }

    /** The first n bytes, by a request of their own. */
    peek(n) {
        return this.#retry(async () => {
            const r = await this.#fetch({ headers: { Range: `bytes=0-${n - 1}` } }), out = new Uint8Array(n);
            if (!r.ok) throw this.#error(`the server answered ${r.status}`, { status: r.status });
            let have = 0;
            for await (const chunk of read(r.body, this.signal)) {
                out.set(chunk.subarray(0, n - have), have);
                if ((have += chunk.length) >= n) break; // a server without ranges sends more
            }
            return out.subarray(0, Math.min(have, n));
        });
    }

    async #retry(attempt) {
        for (let n = 0; ; n++) {
            try {
                return await attempt();
            } catch (e) {
                await this.#again(e, n);
            }
        }
    }

    // Waits before the next try, or throws what no further try would mend.
    async #again(e, n) {
        if (this.signal.aborted) throw aborted(this.signal);
        if (e instanceof Changed) throw e;
        const error = asDibitError(e, 'download'), status = error.details?.status;
        const passing = error.type === 'download' && (!status || status >= 500 || status === 429);
        if (!passing || n >= RETRIES) throw error;
        await pause(PAUSE_MS << n, this.signal);
        if (this.signal.aborted) throw aborted(this.signal);
    }

    /** The bytes from `at` on, which open() has asked for. */
    async *chunks(at) {
        for (let failures = 0; ;) {
            try {
                const response = this.first ?? await this.#request(at);
                this.first = undefined;
                let skip = response.status === 206 ? 0 : at;
                for await (let chunk of read(response.body, this.signal)) {
                    const drop = Math.min(skip, chunk.length);
                    skip -= drop;
                    chunk = chunk.subarray(drop);
                    at += chunk.length;
                    if (!chunk.length) continue;
                    failures = 0;
                    yield chunk;
                }
                if (!(at < this.size)) return;
                throw this.#error(`the connection ended after ${at} of ${this.size} bytes`, { loaded: at, total: this.size });
            } catch (e) {
                await this.#again(e instanceof DibitError || e instanceof Changed ? e
                    : this.#error(e.message, { loaded: at, total: this.size ?? 0 }), failures++);
            }
        }
    }
}
