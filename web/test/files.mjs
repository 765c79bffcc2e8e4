// files.mjs - files for tests: a GGUF taken apart into shards, and private files (OPFS) that are not on
// any disk and fail when they are told to.

/** The parts of a GGUF's header, by the bytes they have. */
function parse(bytes) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    let at = 24;
    const u32 = () => view.getUint32((at += 4) - 4, true), u64 = () => Number(view.getBigUint64((at += 8) - 8, true));
    const sizes = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8];
    const skip = n => { at += n; }; // at += u64() would forget what u64() adds
    const value = kind => skip(kind === 8 ? u64() : sizes[kind]);
    const nTensors = Number(view.getBigUint64(8, true)), nValues = Number(view.getBigUint64(16, true));
    const first = at;
    for (let i = 0; i < nValues; i++) {
        skip(u64());
        const kind = u32();
        if (kind !== 9) value(kind);
        else for (let item = u32(), n = u64(); n > 0; n--) value(item);
    }
    const values = bytes.subarray(first, at), tensors = [];
    for (let i = 0; i < nTensors; i++) {
        const start = at;
        skip(u64());
        skip(8 * u32() + 4);
        tensors.push({ info: bytes.subarray(start, at), offset: u64() });
    }
    const data = Math.ceil(at / 32) * 32;
    tensors.forEach((t, i) => {
        t.data = bytes.subarray(data + t.offset, i + 1 < nTensors ? data + tensors[i + 1].offset : bytes.length);
    });
    return { nValues, values, tensors };
}

const number = (n, size) => {
    const b = Buffer.alloc(size);
    if (size === 8) b.writeBigUInt64LE(BigInt(n));
    else b.writeUInt32LE(n);
    return b;
};
const key = (name, n) => Buffer.concat([number(name.length, 8), Buffer.from(name), number(4, 4), number(n, 4)]);

/** @returns {Buffer[]} the file as n shards; the first has the metadata */
export function split(bytes, n) {
    const { nValues, values, tensors } = parse(bytes), each = Math.ceil(tensors.length / n);
    return Array.from({ length: n }, (_, i) => {
        const part = tensors.slice(i * each, (i + 1) * each), own = i ? Buffer.alloc(0) : values;
        let offset = 0;
        const infos = part.map(t => {
            const info = Buffer.concat([t.info, number(offset, 8)]);
            offset += t.data.length;
            return info;
        });
        const head = Buffer.concat([Buffer.from('GGUF'), number(3, 4), number(part.length, 8),
            number((i ? 0 : nValues) + 3, 8), own, key('split.no', i), key('split.count', n),
            key('split.tensors.count', tensors.length), ...infos]);
        const padding = Buffer.alloc(Math.ceil(head.length / 32) * 32 - head.length);
        return Buffer.concat([head, padding, ...part.map(t => t.data)]);
    });
}

const named = (name, message) => Object.assign(new Error(message ?? name), { name });

/**
 * A fake of navigator.storage.getDirectory(). `fail(n)`: called before the n-th write of all, may throw.
 * A file is open for one writer or for readers, as in a browser.
 */
export class FakeOpfs {
    files = new Map(); // "folder/file" -> { bytes, open }
    writes = 0;
    fail = () => {};

    async getDirectory() {
        return this.#folder('');
    }

    #folder(path) {
        const get = (name, create) => {
            const file = this.files.get(path + name) ?? (create ? { bytes: new Uint8Array(), open: 0 } : null);
            if (!file) throw named('NotFoundError');
            this.files.set(path + name, file);
            return file;
        };
        return {
            getDirectoryHandle: async name => this.#folder(`${path}${name}/`),
            getFileHandle: async (name, { create } = {}) => {
                const file = get(name, create);
                return { getFile: async () => new Blob([file.bytes]),
                    createSyncAccessHandle: async ({ mode = 'readwrite' } = {}) => this.#open(file, mode === 'read-only') };
            },
            removeEntry: async name => {
                if (get(name).open) throw named('NoModificationAllowedError');
                this.files.delete(path + name);
            },
        };
    }

    #open(file, reading) {
        if (file.open && !(reading && file.open > 0)) throw named('NoModificationAllowedError');
        file.open += reading ? 1 : -1;
        const must = () => { if (!file.open) throw named('InvalidStateError'); };
        return {
            read: (into, { at }) => {
                must();
                const part = file.bytes.subarray(at, at + into.length);
                into.set(part);
                return part.length;
            },
            write: (from, { at }) => {
                must();
                this.fail(this.writes++);
                if (at + from.length > file.bytes.length) {
                    const longer = new Uint8Array(at + from.length);
                    longer.set(file.bytes);
                    file.bytes = longer;
                }
                file.bytes.set(from, at);
                return from.length;
            },
            truncate: n => { file.bytes = file.bytes.slice(0, n); },
            flush: must,
            close: () => { file.open -= reading ? 1 : -1; },
        };
    }
}

/** Enough of a module for load.js. */
export class FakeWasm {
    memory = { buffer: new ArrayBuffer(1 << 16) };
    taken = 0;
    malloc(n) {
        this.taken++;
        this.memory.buffer = new ArrayBuffer(64 + n);
        return 64;
    }
    get bytes() {
        return new Uint8Array(this.memory.buffer);
    }
    x = { free: () => { this.taken--; } };
}
