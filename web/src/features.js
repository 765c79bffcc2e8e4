// features.js - runs in the worker: the record of what fails on this device (src/feature.h), kept as a
// text that the page stores between visits.

export class Features {
    /** @param {string} stamp the browser and its version: another one's record does not count */
    constructor(wasm, stamp, state) {
        this.wasm = wasm;
        this.ptr = wasm.scoped(put => {
            const bytes = new TextEncoder().encode(state);
            return wasm.x.dibit_features_open(put(stamp), bytes.length ? put(bytes) : 0, bytes.length, wasm.err) >>> 0;
        });
    }

    /** Remembers an attempt; true when this failure turned the feature off. */
    result(name, ok) {
        return Boolean(this.ptr && this.wasm.scoped(put =>
            this.wasm.x.dibit_features_result(this.ptr, put(name), ok ? 1 : 0, this.wasm.err) > 0));
    }

    time(operation, ms) {
        if (this.ptr) this.wasm.scoped(put => this.wasm.x.dibit_features_time(this.ptr, put(operation), ms, this.wasm.err));
    }

    #text(call) {
        const w = this.wasm, n = this.ptr ? Number(w.x[call](this.ptr, 0, 0)) : 0;
        return n > 0 ? w.scoped(put => {
            const p = put(new Uint8Array(n + 1));
            w.x[call](this.ptr, p, n + 1);
            return w.text(p, n);
        }) : '';
    }

    get disabled() {
        return this.#text('dibit_features_disabled');
    }

    get text() {
        return this.#text('dibit_features_text');
    }
}

/** The names that a record has turned off, before there is a module to ask. */
export const disabledIn = (stamp, state) =>
    (state.includes(`stamp=${stamp}\n`) ? [...state.matchAll(/^feature=(\w+) off /gm)].map(m => m[1]) : []);
