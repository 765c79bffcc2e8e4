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

// The module's own check of its kernels: nothing to say, but where an instruction does something else
// (one with the same operands in its place) the kernels that use it.
async function selfTest(name, changes, slots) {
    const bytes = readFileSync(path(name)), cap = 400;
    const run = async data => {
        const m = await start(data), p = m.x.malloc(cap);
        return { n: m.x.dibit_self_test(7, p, cap), wrong: m.text(p).trim().split(' ') };
    };
    const begin = now(), sound = await run(bytes);
    check(sound.n === 0, `${name}: the self-test passes in ${(now() - begin).toFixed(0)} ms, loading included`);
    let changed = 0;
    for (const [from, to] of changes)
        for (let i = 0; (i = bytes.indexOf(Buffer.from(from), i)) >= 0; i += from.length, changed++) bytes.set(to, i);
    const broken = await run(bytes);
    check(changed > 0 && broken.n > 0 && slots.every(s => broken.wrong.includes(s)),
        `${name}: with ${changed} wrong instructions it names ${broken.wrong.join(' ')}`);
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

// Memory that ends anywhere: from too little for the file to enough, every memory.grow fails once as
// the last one. Each failure is DIBIT_E_MEMORY (or malloc's 0 to the host) and leaves nothing behind,
// and what is open goes on.
async function growFails(name) {
    const file = Math.ceil(data.length / 65536), at = {};
    let enough = 0, n = 0;
    for (let extra = 10; !enough; extra += extra < 40 ? 1 : 3, n++) {
        const m = await start(path(name), 1, undefined, file + extra), begin = m.x.dibit_heap_bytes();
        let step = 'the file', e, s;
        try {
            const image = m.put(data);
            step = 'open';
            e = open(m, image, data.length, { n_threads: 1, repack_in_place: 1 });
            step = 'a session';
            s = e.session({ n_ctx: 512 });
            step = 'tokens';
            e.sync(s, e.tokenize(prompt));
            e.generate(s, 2);
            enough = extra;
        } catch (error) {
            at[step] = (at[step] || 0) + 1;
            const memory = step === 'the file' ? /no memory/.test(error.message) : error.code === -2;
            if (!memory) check(false, `${name}: ${extra} pages besides the file, ${step}: ${error.code} ${error.message}`);
            if (step === 'a session') { // a smaller one may do
                const before = m.x.dibit_heap_bytes();
                try {
                    const small = e.session({ n_ctx: 32, n_batch: 8 });
                    e.sync(small, e.tokenize(prompt));
                    small.free();
                    at['a smaller session'] = (at['a smaller session'] || 0) + 1;
                } catch (error) {
                    if (error.code !== -2) check(false, `${name}: a smaller session: ${error.message}`);
                }
                if (m.x.dibit_heap_bytes() !== before) check(false, `${name}: a session that failed left memory behind`);
            }
        }
        s?.free();
        e?.close();
        const left = m.x.dibit_heap_bytes() - begin - (step === 'the file' ? 0 : data.length);
        if (left < 0 || left > 128) check(false, `${name}: ${left} bytes are left behind after ${step}`);
    }
    check(at['the file'] && at.open && at['a session'] && at['a smaller session'],
        `${name}: memory ended at ${n - 1} places (${Object.entries(at).map(a => a.join(' ')).join(', ')}); ` +
        `the file and ${enough} pages are enough`);
}

// Sessions come and go, and one is used again and again: the heap does not creep.
async function rounds(name, n) {
    const m = await start(path(name)), image = m.put(data), begin = now();
    const e = open(m, image, data.length, { n_threads: 1, repack_in_place: 1 }), kept = e.session({ n_ctx: 64 });
    const ids = e.tokenize('The');
    let live, memory;
    for (let i = 0; i < n; i++) {
        const s = e.session({ n_ctx: 32 + i % 5 * 16, n_batch: 1 + i % 7 * 4, cache_k: ['f16', 'k2', 'q8'][i % 3] });
        e.sync(kept, ids.subarray(0, 0));
        e.sync(kept, ids);
        e.generate(kept, 1);
        s.free();
        if (i === 40) [live, memory] = [m.x.dibit_heap_bytes(), m.memory.buffer.byteLength];
    }
    check(m.x.dibit_heap_bytes() === live && m.memory.buffer.byteLength === memory,
        `${name}: ${n} sessions and resets in ${(now() - begin).toFixed(0)} ms: live bytes ${live}, then ` +
        `${m.x.dibit_heap_bytes()}; memory ${memory}, then ${m.memory.buffer.byteLength}`);
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
if (relaxed) await kernels('kern-relaxed32', process.env.KERN || '-n 25');
// i16x8.mul becomes i16x8.add, the relaxed dots others with as many operands
await selfTest('dibit-simd', [[[0xfd, 0x95, 0x01], [0xfd, 0x8e, 0x01]]], ['mul_q4', 'mul_s3', 'mul_t2']);
if (relaxed) // into 16 bits: relaxed_q15mulr; into 32: relaxed_laneselect
    await selfTest('dibit-relaxed1', [[[0xfd, 0x92, 0x02], [0xfd, 0x91, 0x02]], [[0xfd, 0x93, 0x02], [0xfd, 0x89, 0x02]]],
        ['mul_q4', 'mul_q8', 'mul_t2']);
for (const [cache, ids] of Object.entries(want)) {
    await generate('dibit-simd', 1, ids, cache);
    await generate('dibit-threads', 2, ids, cache);
    if (relaxed) await generate('dibit-relaxed1', 1, ids, cache);
    if (relaxed) await generate('dibit-relaxed', 2, ids, cache);
}
await growFails('dibit-threads');
await rounds(relaxed ? 'dibit-relaxed1' : 'dibit-simd', 1000);
await stress(relaxed ? 'dibit-relaxed' : 'dibit-threads', 2, 200);
await stress('dibit-threads', 5, 20);
if (!relaxed)
    console.log(`note: dibit-relaxed was not run, since V8 ${process.versions.v8} of this node lacks relaxed SIMD`);
console.log(`wasm: ${failed ? failed + ' failed' : 'all passed'}`);
process.exit(failed ? 1 : 0);
