// wasm-core.mjs - the calls of dibit.h on a module of `make wasm`, the same under node and in browsers:
// imports, structs, an engine and its tokens.
const encoder = new TextEncoder(), decoder = new TextDecoder();
export const now = () => performance.now();
export const imports = (memory, write = () => {}) => ({ dibit: { now, write }, env: { memory } });

// Typed access to the structs of dibit.h.
export function access({ x, memory }) {
    const view = () => new DataView(memory.buffer), bytes = () => new Uint8Array(memory.buffer);
    const text = (p, n) => decoder.decode(bytes().slice(p, n === undefined ? bytes().indexOf(0, p) : p + n));
    const at = {};
    for (let p = x.dibit_layout?.(); p && view().getUint32(p, true); p += 8)
        at[text(view().getUint32(p, true))] = view().getUint32(p + 4, true);
    const put = s => {
        const data = typeof s === 'string' ? encoder.encode(s + '\0') : s, p = x.malloc(data.length);
        if (!p) throw new Error('no memory');
        bytes().set(data, p);
        return p;
    };
    const make = (type, fields = {}) => {
        const p = put(new Uint8Array(at[type]));
        for (const [k, v] of Object.entries(fields)) view().setInt32(p + at[`${type}.${k}`], v, true);
        return p;
    };
    const get = (type, p, field) => view().getUint32(p + at[`${type}.${field}`], true);
    return { view, bytes, text, put, make, get, at };
}

// An engine over an image that is in the module's memory, with what its calls need. Errors throw.
export function open(m, image, size, options = {}) {
    const { x } = m, err = m.make('DibitError'), out = m.put(new Uint8Array(8));
    const ok = code => {
        if (Number(code) >= 0) return code;
        const e = new Error(m.text(err + m.at['DibitError.text']));
        e.code = Number(code);
        throw e;
    };
    const made = () => m.view().getUint32(out, true);
    const free = (call, p) => {
        m.view().setUint32(out, p, true);
        call(out);
    };
    const opt = m.make('DibitOptions', options);
    let engine;
    const close = () => {
        if (engine) free(x.dibit_close, engine);
        for (const p of [err, out, opt]) x.free(p);
    };
    try {
        ok(x.dibit_open_memory(out, image, size, opt, err));
        engine = made();
    } catch (e) {
        close();
        throw e;
    }
    const info = m.make('DibitModelInfo');
    x.dibit_model_info(engine, info);
    const e = { engine, close, ok, err, isa: m.text(m.get('DibitModelInfo', info, 'isa')),
        weight_bytes: m.get('DibitModelInfo', info, 'weight_bytes') };
    x.free(info);
    e.session = (fields = {}) => {
        const strings = ['cache_k', 'cache_v'].filter(k => fields[k]).map(k => [k, m.put(fields[k])]);
        const p = m.make('DibitSessionOptions', { ...fields, ...Object.fromEntries(strings) });
        try {
            ok(x.dibit_session_create(out, engine, p, err));
            const s = made();
            return { p: s, free: () => free(x.dibit_session_free, s) };
        } finally {
            for (const q of [p, ...strings.map(s => s[1])]) x.free(q);
        }
    };
    e.tokenize = text => {
        const bytes = encoder.encode(text), p = m.put(bytes), ids = x.malloc(4 * (bytes.length + 8));
        try {
            const n = Number(ok(x.dibit_tokenize(engine, p, bytes.length, 1, ids, bytes.length + 8, err)));
            return new Int32Array(m.memory.buffer, ids, n).slice();
        } finally {
            x.free(p);
            x.free(ids);
        }
    };
    e.sync = (s, ids) => {
        const p = m.put(new Uint8Array(ids.buffer, ids.byteOffset, ids.byteLength));
        try {
            return Number(ok(x.dibit_sync(s.p, p, ids.length, err)));
        } finally {
            x.free(p);
        }
    };
    // At most n tokens: {ids, text}.
    e.generate = (s, n) => {
        const piece = m.make('DibitPiece'), ids = [];
        let said = '';
        try {
            while (ids.length < n && ok(x.dibit_next(s.p, piece, err)) === 1) {
                ids.push(m.get('DibitPiece', piece, 'id'));
                said += m.text(m.get('DibitPiece', piece, 'text'), m.get('DibitPiece', piece, 'n_bytes'));
            }
        } finally {
            x.free(piece);
        }
        return { ids, text: said };
    };
    e.tokenBytes = id => {
        const n = ok(x.dibit_token_bytes(engine, id, 0, out));
        return m.bytes().slice(made(), made() + n);
    };
    e.memory = s => {
        const p = m.make('DibitMemory');
        x.dibit_memory(s.p, p);
        const of = f => m.get('DibitMemory', p, f);
        const sizes = { weights: of('weights'), kv: of('kv'), scratch: of('scratch') };
        x.free(p);
        return sizes;
    };
    return e;
}
