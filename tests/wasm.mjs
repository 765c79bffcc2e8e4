// wasm.mjs - the modules of `make wasm` under node: the kernels against the scalar ones, then greedy
// tokens against what the native program gave.
// usage: node wasm.mjs FOLDER MODEL JSON (of `dibit run --json --temp 0`) PROMPT
import { readFileSync } from 'node:fs';

const encoder = new TextEncoder(), decoder = new TextDecoder();
const now = () => performance.now();
let write = () => {};
const host = { dibit: { now, write: (p, n) => write(p, n) } };
const [folder, model, native, prompt] = process.argv.slice(2);
let failed = 0;
const check = (ok, text) => {
    console.log(`${ok ? 'ok  ' : 'FAIL'} ${text}`);
    failed += !ok;
};
const file = name => new Uint8Array(readFileSync(`${folder}/${name}.wasm`));

// ---- kernels: the test program writes its own lines ----

async function kernels(name, args) {
    const x = (await WebAssembly.instantiate(file(name), host)).instance.exports;
    const bytes = () => new Uint8Array(x.memory.buffer);
    let text = '';
    write = (p, n) => { text += decoder.decode(bytes().slice(p, p + n)); };
    const line = x.malloc(args.length + 1);
    bytes().set(encoder.encode(args + '\0'), line);
    const code = x.run(line);
    if (process.env.VERBOSE || code) console.log(text);
    check(code === 0 && /, 0 failed/.test(text), `${name}: ${text.trim().split('\n').pop()}`);
}

// ---- the engine ----

// Typed access to the structs of dibit.h.
function access(x) {
    const view = () => new DataView(x.memory.buffer), bytes = () => new Uint8Array(x.memory.buffer);
    const text = (p, n) => decoder.decode(bytes().slice(p, n === undefined ? bytes().indexOf(0, p) : p + n));
    const at = {};
    for (let p = x.dibit_layout(); view().getUint32(p, true); p += 8)
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
    return { view, text, put, make, get, at };
}

async function generate(name, want, cache) {
    const x = (await WebAssembly.instantiate(file(name), host)).instance.exports, a = access(x);
    const err = a.make('DibitError'), out = a.make('DibitError'), data = readFileSync(model);
    const ok = code => {
        if (Number(code) < 0) throw new Error(a.text(err + a.at['DibitError.text']));
        return code;
    };
    const image = a.put(data);
    ok(x.dibit_open_memory(out, image, data.length, a.make('DibitOptions', { n_threads: 1 }), err));
    const engine = a.view().getUint32(out, true), info = a.make('DibitModelInfo');
    x.dibit_model_info(engine, info);
    const isa = a.text(a.get('DibitModelInfo', info, 'isa'));
    const options = { n_ctx: 256, cache_k: a.put(cache), cache_v: a.put(cache) };
    ok(x.dibit_session_create(out, engine, a.make('DibitSessionOptions', options), err));
    const session = a.view().getUint32(out, true);

    const bytes = encoder.encode(prompt), ids = x.malloc(4 * 256);
    const n = Number(ok(x.dibit_tokenize(engine, a.put(bytes), bytes.length, 1, ids, 256, err)));
    const begin = now();
    ok(x.dibit_sync(session, ids, n, err));
    const piece = a.make('DibitPiece'), got = [], prefilled = now();
    let said = '';
    while (got.length < 64 && ok(x.dibit_next(session, piece, err)) === 1) {
        got.push(a.get('DibitPiece', piece, 'id'));
        said += a.text(a.get('DibitPiece', piece, 'text'), a.get('DibitPiece', piece, 'n_bytes'));
    }
    const end = now(), memory = a.make('DibitMemory');
    x.dibit_memory(session, memory);
    const mb = f => (a.get('DibitMemory', memory, f) / 1e6).toFixed(1);
    // each token's own bytes give the text again
    const parts = got.map(id => {
        const length = ok(x.dibit_token_bytes(engine, id, 0, out));
        const p = a.view().getUint32(out, true);
        return new Uint8Array(x.memory.buffer).slice(p, p + length);
    });
    check(Buffer.concat(parts).toString().startsWith(said), `${name}: bytes of the tokens are the text`);
    check(got.length > 0 && JSON.stringify(got) === JSON.stringify(want),
        `${name} (${isa}), one thread, cache ${cache}: ` +
        `${got.length} tokens as native, ${(1000 * got.length / (end - prefilled)).toFixed(1)} tokens/s, prefill ` +
        `${(1000 * n / (prefilled - begin)).toFixed(0)}, KV ${mb('kv')} MB, scratch ${mb('scratch')} MB, ` +
        `wasm memory ${(x.memory.buffer.byteLength / 1e6).toFixed(1)} MB`);
    a.view().setUint32(out, session, true);
    x.dibit_session_free(out);
    a.view().setUint32(out, engine, true);
    x.dibit_close(out);

    // what cannot be opened is an error with a text
    a.view().setUint8(image + 5, 99);
    const code = x.dibit_open_memory(out, image, data.length, 0, err);
    const message = a.text(err + a.at['DibitError.text']);
    check(code === -5 && /version/.test(message), `${name}: another version is refused: ${message}`);
}

// V8 before 12 refuses relaxed SIMD, or computes its chained byte dots wrongly.
const v8 = parseInt(process.versions.v8, 10);
const relaxed = v8 >= 12 && WebAssembly.validate(file('kern-relaxed'));

const want = {};
for (const line of readFileSync(native, 'utf8').split('\n')) {
    const [cache, json] = line.split('\t');
    if (!json) continue;
    const token = JSON.parse(json);
    if ('token_id' in token) (want[cache] ||= []).push(token.token_id);
}
for (const name of ['dibit-simd', 'dibit-relaxed']) {
    const size = file(name).length;
    check(size <= 400000, `${name}.wasm: ${size} bytes (at most 400000)`);
}
await kernels('kern-simd', process.env.KERN || '-n 25');
if (relaxed) await kernels('kern-relaxed', process.env.KERN || '-n 25');
for (const [cache, ids] of Object.entries(want)) {
    await generate('dibit-simd', ids, cache);
    if (relaxed) await generate('dibit-relaxed', ids, cache);
}
if (!relaxed)
    console.log(`note: dibit-relaxed was not run, since V8 ${process.versions.v8} of this node lacks relaxed SIMD`);
check(Object.keys(want).length === 5, 'native tokens of 5 cache types');
console.log(`wasm: ${failed ? failed + ' failed' : 'all passed'}`);
process.exit(failed ? 1 : 0);
