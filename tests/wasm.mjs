// wasm.mjs - the modules of `make wasm` under node: the kernels against the scalar ones, greedy tokens
// against what the native program gave, with one thread and with two, and threads under stress.
// usage: node wasm.mjs FOLDER MODEL JSON (of `dibit run --json --temp 0`) PROMPT
import { readFileSync } from 'node:fs';
import { now, open, start } from './wasm-host.mjs';

const [folder, model, native, prompt] = process.argv.slice(2);
let failed = 0;
const check = (ok, text) => {
    console.log(`${ok ? 'ok  ' : 'FAIL'} ${text}`);
    failed += !ok;
};
const path = name => `${folder}/${name}.wasm`;
const data = readFileSync(model);

// The test program writes its own lines.
async function kernels(name, args) {
    let text = '';
    const m = await start(path(name), 1, (self, p, n) => {
        text += new TextDecoder().decode(new Uint8Array(self.x.memory.buffer).slice(p, p + n));
    });
    const code = m.x.run(m.put(args));
    if (process.env.VERBOSE || code) console.log(text);
    check(code === 0 && /, 0 failed/.test(text), `${name}: ${text.trim().split('\n').pop()}`);
}

async function generate(name, nThreads, want, cache) {
    const m = await start(path(name), nThreads), image = m.put(data);
    const e = open(m, image, data.length, { n_threads: nThreads, repack_in_place: 1 });
    const s = e.session({ n_ctx: 256, cache_k: cache, cache_v: cache }), ids = e.tokenize(prompt);
    const begin = now();
    e.sync(s, ids);
    const prefilled = now(), got = e.generate(s, 64), end = now(), sizes = e.memory(s);
    const mb = n => `${(n / 1e6).toFixed(1)} MB`;
    // each token's own bytes give the text again
    const bytes = Buffer.concat(got.ids.map(e.tokenBytes));
    if (!bytes.toString().startsWith(got.text)) check(false, `${name}: bytes of the tokens are not the text`);
    check(got.ids.length > 0 && JSON.stringify(got.ids) === JSON.stringify(want),
        `${name} (${e.isa}), ${nThreads} thread${nThreads > 1 ? 's' : ''}, cache ${cache}: ` +
        `${got.ids.length} tokens as native, ${(1000 * got.ids.length / (end - prefilled)).toFixed(1)} ` +
        `tokens/s, prefill ${(1000 * ids.length / (prefilled - begin)).toFixed(0)}, KV ${mb(sizes.kv)}, ` +
        `scratch ${mb(sizes.scratch)}, wasm memory ${mb(m.memory.buffer.byteLength)}`);
    const peak = data.length + sizes.kv + sizes.scratch + 4e6;
    check(m.memory.buffer.byteLength <= peak, `${name}: at most the file, KV, scratch and 4 MB: ${mb(peak)}`);
    s.free();
    e.close();

    // what cannot be opened is an error with a text
    m.view().setUint8(image + 5, 99);
    let error = { code: 0 };
    try {
        open(m, image, data.length, { n_threads: nThreads });
    } catch (e) {
        error = e;
    }
    check(error.code === -5 && /version/.test(error.message),
        `${name}: another version is refused: ${error.message}`);
    await m.end();
}

// Engines come and go: each takes its threads and gives them back; the first opens find threads that
// are still on their way.
async function stress(name, nThreads, rounds) {
    const m = await start(path(name), nThreads), image = m.put(data), begin = now();
    let first;
    for (let i = 0; i < rounds; i++) {
        const e = open(m, image, data.length, { n_threads: i % 3 ? nThreads : 0 });
        const s = e.session({ n_ctx: 64 });
        e.sync(s, e.tokenize(prompt));
        const got = e.generate(s, 1 + i % 2).ids[0];
        first ??= got;
        if (got !== first) throw new Error(`round ${i}: token ${got}, not ${first}`);
        s.free();
        e.close();
    }
    let text = '';
    try {
        open(m, image, data.length, { n_threads: nThreads + 1 });
    } catch (e) {
        text = e.message;
    }
    check(/cannot start thread/.test(text), `${name}: more threads than there are is an error: ${text}`);
    check(true, `${name}, ${nThreads} threads: opened and closed ${rounds} times in ${(now() - begin).toFixed(0)} ms`);
    await m.end();
}

// V8 before 12 refuses relaxed SIMD, or computes its chained byte dots wrongly.
const v8 = parseInt(process.versions.v8, 10);
const relaxed = v8 >= 12 && WebAssembly.validate(readFileSync(path('kern-relaxed')));

const want = {};
for (const line of readFileSync(native, 'utf8').split('\n')) {
    const [cache, json] = line.split('\t');
    if (!json) continue;
    const token = JSON.parse(json);
    if ('token_id' in token) (want[cache] ||= []).push(token.token_id);
}
check(Object.keys(want).length === 5, 'native tokens of 5 cache types');
for (const name of ['dibit-simd', 'dibit-threads', 'dibit-relaxed1', 'dibit-relaxed']) {
    const size = readFileSync(path(name)).length;
    check(size <= 400000, `${name}.wasm: ${size} bytes (at most 400000)`);
}
await kernels('kern-simd', process.env.KERN || '-n 25');
if (relaxed) await kernels('kern-relaxed', process.env.KERN || '-n 25');
for (const [cache, ids] of Object.entries(want)) {
    await generate('dibit-simd', 1, ids, cache);
    await generate('dibit-threads', 2, ids, cache);
    if (relaxed) await generate('dibit-relaxed1', 1, ids, cache);
    if (relaxed) await generate('dibit-relaxed', 2, ids, cache);
}
await stress(relaxed ? 'dibit-relaxed' : 'dibit-threads', 2, 200);
await stress('dibit-threads', 5, 20);
if (!relaxed)
    console.log(`note: dibit-relaxed was not run, since V8 ${process.versions.v8} of this node lacks relaxed SIMD`);
console.log(`wasm: ${failed ? failed + ' failed' : 'all passed'}`);
process.exit(failed ? 1 : 0);
