// unit-engine.mjs - the package as a page uses it, with real workers and threads, but under node.
// usage: node --test unit-engine.mjs (DIBIT_WASM: folder of the modules; DIBIT_MODEL: a GGUF file)
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, resolve } from 'node:path';
import { after, test } from 'node:test';
import { open as openDirectly, start } from '../../tests/wasm-host.mjs';
import { serve } from '../../tools/serve.mjs';
import { createEngine, DibitError } from '../src/index.js';
import { split } from './files.mjs';
import { Worker } from './worker.mjs';

globalThis.crossOriginIsolated = true; // node shares memory without more ado
const modules = resolve(process.env.DIBIT_WASM ?? 'build/web');
const file = resolve(process.env.DIBIT_MODEL ?? 'models/dibit-34m.gguf'), data = readFileSync(file);
const folder = mkdtempSync(`${tmpdir()}/dibit-`);
const server = await serve({ mounts: { '/x/': folder, '/m/': dirname(file), '/wasm/': modules } });
after(() => { rmSync(folder, { recursive: true }); return server.close(); });

const name = `/m/${file.split('/').pop()}`;
const worker = () => new Worker(new URL('../src/worker.js', import.meta.url));
const open = (more = {}) => createEngine({ model: server.url + name, wasmUrl: `${server.url}/wasm`, n_ctx: 512,
    n_threads: 1, worker: worker(), ...more });
const PROMPT = 'The history of the city begins', GREEDY = { temperature: 0, max_new_tokens: 16 };
const LONG = 'It was said that many people came to the town in that year, and more of them in the next. '.repeat(20);

async function all(tokens) {
    const out = [];
    for await (const t of tokens) out.push(t);
    return out;
}
const text = tokens => tokens.map(t => t.token).join('');
const type = expected => e => (e instanceof DibitError && e.type === expected) || assert.fail(`${e.type}: ${e.stack}`);

/** What the engine says without the package, its prompt computed as a whole. */
async function direct(prompt, n, cache) {
    const m = await start(`${modules}/dibit-simd.wasm`), e = openDirectly(m, m.put(data), data.length, { n_threads: 1 });
    const s = e.session({ n_ctx: 512, cache_k: cache, cache_v: cache });
    e.sync(s, e.tokenize(prompt));
    return e.generate(s, n).ids;
}

test('tokens are the engine\'s, whatever the pieces of the prompt, caches and threads', async () => {
    for (const [cache, n_threads] of [['f16', 1], ['k2', 2], ['k3', 1]]) {
        const engine = await open({ cache_type_k: cache, cache_type_v: cache, n_threads });
        assert.equal(engine.path.threads, n_threads);
        const got = await all(engine.generate(LONG, { ...GREEDY, temperature: 0 }));
        assert.deepEqual(got.map(t => t.token_id), await direct(LONG, 16, cache), cache);
        assert.deepEqual(got.map(t => t.tokens_generated), Array.from({ length: 16 }, (_, i) => i + 1));
        assert.deepEqual(got.map(t => t.finish_reason), [...Array(15).fill(null), 'length']);
        assert.deepEqual(got.map(t => t.finished), [...Array(15).fill(false), true]);
        const n = await engine.measureContextUsage(LONG);
        assert.ok(Math.abs(engine.contextUsage - n - 16) <= 1, `${engine.contextUsage} of ${n} + 16`);
        assert.equal(engine.contextWindow, 512);
        engine.destroy();
    }
});

test('the same seed gives the same text, and another one another', async () => {
    const engine = await open(), say = async seed => text(await all(engine.generate(PROMPT, { seed, max_new_tokens: 20 })));
    const first = await say(5);
    assert.equal(await say(5), first);
    assert.notEqual(await say(6), first);
    assert.notEqual(await say(undefined), await say(undefined));
    engine.destroy();
});

test('a stop string ends the text before it', async () => {
    const engine = await open(), whole = text(await all(engine.generate(PROMPT, GREEDY)));
    const stop = whole.slice(12, 17), got = await all(engine.generate(PROMPT, { ...GREEDY, stop: [stop] }));
    assert.equal(text(got), whole.slice(0, whole.indexOf(stop)));
    assert.deepEqual([got.at(-1).finish_reason, got.at(-1).finished], ['stop', true]);
    assert.equal(text(await all(engine.generate(PROMPT, { ...GREEDY, max_new_tokens: 0 }))), '');
    engine.destroy();
});

test('chat: a whole answer and chunks say the same', async () => {
    const engine = await open(), messages = [{ role: 'user', content: 'Who are you?' }];
    const body = { messages, max_tokens: 12, temperature: 0 };
    const whole = await engine.chat.completions.create(body);
    assert.equal(whole.choices[0].finish_reason, 'length');
    assert.equal(whole.usage.completion_tokens, 12);
    const got = await all(await engine.chat.completions.create({ ...body, stream: true, stream_options: { include_usage: true } }));
    assert.equal(got.map(c => c.choices[0]?.delta.content ?? '').join(''), whole.choices[0].message.content);
    assert.equal(got.at(-1).usage.total_tokens, whole.usage.total_tokens);
    assert.equal(got.at(-1).usage.prompt_tokens_details.cached_tokens, whole.usage.prompt_tokens);
    await assert.rejects(engine.chat.completions.create({ messages: [] }), type('argument'));
    await assert.rejects(engine.chat.completions.create({ messages: [{ role: 'robot', content: '' }] }), type('argument'));
    await assert.rejects(engine.chat.completions.create({ messages, tools: [{}] }), type('unsupported'));
    engine.destroy();
});

test('an abort is heard within 100 ms, in the prompt and in the text', async () => {
    const engine = await open({ n_ctx: 2048 }), long = LONG.repeat(3);
    await all(engine.generate(PROMPT, GREEDY)); // so that the pieces have found their size
    for (const when of ['prompt', 'text']) {
        const control = new AbortController(), tokens = engine.generate(when === 'prompt' ? long : PROMPT, { signal: control.signal });
        const first = tokens.next();
        if (when === 'text') await first;
        else setTimeout(() => control.abort(), 60);
        const begin = performance.now();
        if (when === 'text') control.abort(new Error('because'));
        await assert.rejects(when === 'text' ? all(tokens) : first, type('aborted'));
        const heard = performance.now() - begin;
        await engine.measureContextUsage('x'); // the worker itself has stopped: it answers the next calls
        await all(engine.generate(PROMPT, { ...GREEDY, max_new_tokens: 1 }));
        const free = performance.now() - begin;
        // generous, for busy machines; what browsers do is measured in tests/web
        assert.ok(heard < 500 && free < 2000, `${when}: heard after ${heard.toFixed()}, free after ${free.toFixed()} ms`);
    }
    await assert.rejects(all(engine.generate(PROMPT, { signal: AbortSignal.abort() })), type('aborted'));
    for await (const t of engine.generate(PROMPT)) if (t.tokens_generated === 3) break; // leaving aborts, too
    assert.equal((await all(engine.generate(PROMPT, GREEDY))).length, 16);
    engine.destroy();
});

test('what does not fit the context is refused before any work', async () => {
    const engine = await open({ n_ctx: 64 });
    await assert.rejects(all(engine.generate(LONG)), e => type('context_full')(e) && e.details.available === 64 &&
        e.details.requested > 64);
    const got = await all(engine.generate(PROMPT, { temperature: 0 }));
    assert.ok(['length', 'stop'].includes(got.at(-1).finish_reason));
    assert.ok(engine.contextUsage <= 64);
    engine.destroy();
});

test('wrong arguments are named', async () => {
    const engine = await open();
    assert.throws(() => engine.generate(5), type('argument'));
    for (const bad of [{ max_new_tokens: -1 }, { max_new_tokens: 1.5 }, { stop: [5] }, { temperature: NaN }, { top_p: 5 }])
        await assert.rejects(all(engine.generate(PROMPT, bad)), type('argument'), JSON.stringify(bad));
    engine.destroy();
    await assert.rejects(open({ cache_type_k: 'q9' }), type('argument'));
    for (const model of [undefined, 5, [], {}]) await assert.rejects(createEngine({ model }), type('argument'));
});

test('a clone goes on where the engine is, on its own', async () => {
    const engine = await open(), before = await engine.memory();
    await all(engine.generate(PROMPT, { ...GREEDY, max_new_tokens: 1 }));
    const two = await engine.clone();
    assert.equal(two.contextUsage, engine.contextUsage);
    const [a, b] = await Promise.all([all(engine.generate(PROMPT, GREEDY)), all(two.generate(PROMPT, GREEDY))]);
    assert.deepEqual(a, b);
    assert.ok((await two.memory()).kv > 0 && before.weights === (await two.memory()).weights);
    engine.destroy(); // the worker lives on for the other
    assert.deepEqual(await all(two.generate(PROMPT, GREEDY)), a);
    await assert.rejects(all(engine.generate(PROMPT)), type('aborted'));
    const running = all(two.generate(PROMPT));
    two.destroy();
    two.destroy();
    await assert.rejects(running, type('aborted'));
    await assert.rejects(two.memory(), type('aborted'));
});

test('memory is what it is said to be, and stays flat', async () => {
    const engine = await open(), { weights, kv, scratch, wasm, peak } = await engine.memory();
    assert.ok(weights >= 0.9 * data.length && kv > 0 && scratch > 0 && wasm >= weights + kv + scratch);
    assert.ok(peak >= wasm && peak <= data.length + kv + 16e6, `${peak} of ${data.length} + ${kv} + 16 MB`);
    for (let i = 0; i < 50; i++) await all(engine.generate(`${i} ${PROMPT}`, { ...GREEDY, max_new_tokens: 2 }));
    for (let i = 0; i < 20; i++) (await engine.clone()).destroy();
    const after = await engine.memory();
    assert.ok(after.wasm - wasm <= kv + scratch + 65536 * 4, `${after.wasm - wasm} more`); // of one clone
    const later = async () => { for (let i = 0; i < 20; i++) (await engine.clone()).destroy(); return (await engine.memory()).wasm; };
    assert.equal(await later(), after.wasm);
    engine.destroy();
});

test('what passes the budget is refused before it is fetched', async () => {
    server.log.length = 0;
    await assert.rejects(open({ memory_budget: 20e6 }), e => type('out_of_memory')(e) && e.details.needed > 20e6 &&
        /n_ctx/.test(e.message));
    const sent = server.log.filter(r => r.path === name).reduce((n, r) => n + r.sent, 0);
    assert.ok(sent < data.length / 2, `${sent} bytes were sent`);
    (await open({ memory_budget: 45e6 })).destroy();
});

test('blobs, streams and shards are models too', async () => {
    const want = await direct(PROMPT, 8, 'f16'), shards = split(data, 3);
    shards.forEach((s, i) => writeFileSync(`${folder}/m-0000${i + 1}-of-00003.gguf`, s));
    const urls = [1, 2, 3].map(i => `${server.url}/x/m-0000${i}-of-00003.gguf`);
    const stream = () => new ReadableStream({ start: c => { for (let i = 0; i < data.length; i += 1e6) c.enqueue(data.subarray(i, i + 1e6)); c.close(); } });
    for (const model of [new Blob([data]), stream(), urls[0], urls, shards.map(s => new Blob([s]))]) {
        const engine = await open({ model });
        assert.deepEqual((await all(engine.generate(PROMPT, { ...GREEDY, max_new_tokens: 8 }))).map(t => t.token_id), want);
        engine.destroy();
    }
    await assert.rejects(open({ model: urls.slice(0, 2) }), type('format'));
    const broken = new ReadableStream({ pull: c => c.error(new Error('cable')) });
    await assert.rejects(open({ model: broken }), e => type('download')(e) && /cable/.test(e.message));
});

test('of a manifest of variants the plan picks one', async () => {
    const manifest = (name, variants) => writeFileSync(`${folder}/${name}.json`, JSON.stringify({ variants }));
    const types = { attention: 's2', feed_forward: 's2' };
    writeFileSync(`${folder}/small.gguf`, data);
    manifest('two', [{ file: 'huge.gguf', bytes: 60e9, kld: 0.01, types: { attention: 'q4', feed_forward: 'q4' } },
        { file: 'small.gguf', bytes: data.length, kld: 0.3, types }]);
    const engine = await open({ model: `${server.url}/x/two.json` });
    assert.equal(engine.plan.find(l => l.key === 'variant').value, 'small.gguf');
    assert.equal(engine.info.file_bytes, data.length);
    engine.destroy();
    manifest('none', [{ file: 'huge.gguf', bytes: 60e9, types }]);
    await assert.rejects(open({ model: `${server.url}/x/none.json` }), type('out_of_memory'));
    for (const variants of [[], 'x', [{}], [{ file: 'a b', bytes: 1 }]]) {
        manifest('odd', variants);
        await assert.rejects(open({ model: `${server.url}/x/odd.json` }), type('format'), JSON.stringify(variants));
    }
    writeFileSync(`${folder}/odd.json`, 'no JSON');
    await assert.rejects(open({ model: `${server.url}/x/odd.json` }), type('format'));
    await assert.rejects(open({ model: `${server.url}/x/nowhere.json` }), type('download'));
});

test('what is not a model, or not all of one, is an error with a sentence', async () => {
    const cases = [['?short=1000000', 'format', /truncated/], ['?status=404', 'download', /answered 404/],
        ['?type=text/html', null]];
    for (const [query, expected, says] of cases) {
        const opening = open({ model: server.url + name + query });
        if (expected) await assert.rejects(opening, e => type(expected)(e) && says.test(e.message));
        else (await opening).destroy(); // the bytes count, not the label
    }
    writeFileSync(`${folder}/page.gguf`, '<!doctype html><title>Not found</title>'.repeat(100));
    await assert.rejects(open({ model: `${server.url}/x/page.gguf` }), e => type('format')(e) && /not a GGUF/.test(e.message));
    writeFileSync(`${folder}/empty.gguf`, '');
    await assert.rejects(open({ model: `${server.url}/x/empty.gguf` }), type('format'));
    const odd = Buffer.from(data);
    odd.fill(255, 200, 300);
    await assert.rejects(open({ model: new Blob([odd]) }), type('format'));
    await assert.rejects(open({ wasmUrl: `${server.url}/nowhere` }), type('download'));
});

test('an abort while it opens leaves nothing open', async () => {
    for (const after of [0, 20, 60, 120]) {
        const control = new AbortController();
        setTimeout(() => control.abort(), after);
        await assert.rejects(open({ signal: control.signal, model: `${server.url}${name}?slow=40000000` }), type('aborted'));
    }
    await assert.rejects(open({ signal: AbortSignal.abort() }), type('aborted'));
});

test('a page\'s own store is asked', async () => {
    const store = new Map(), stages = new Set();
    for (let i = 0; i < 2; i++) (await open({ store, onProgress: p => stages.add(p.stage) })).destroy();
    assert.equal(store.size, Math.ceil(data.length / 2 ** 20) + 1);
    assert.ok(stages.has('cache'));
    const full = { get: () => null, delete() {}, set() { throw Object.assign(new Error('full'), { name: 'QuotaExceededError' }); } };
    const engine = await open({ store: full });
    assert.deepEqual(engine.warnings.map(w => w.type), ['quota']);
    engine.destroy();
});

// ---- modules that are no good on this device ----

const bad = query => new Worker(new URL(`./bad-worker.js?${query}`, import.meta.url));

test('a trap in the middle of a text: the next best module goes on with it', async () => {
    const want = await direct(PROMPT, 16, 'f16'), f16 = { cache_type_k: 'f16', cache_type_v: 'f16', n_threads: 2 };
    for (const n of [1, 7]) {
        const engine = await open({ ...f16, worker: bad(`trap=${n}`) });
        assert.equal(engine.path.module, 'dibit-threads');
        const two = await engine.clone();
        const [a, b] = await Promise.all([engine, two].map(e => all(e.generate(PROMPT, GREEDY))));
        for (const got of [a, b]) {
            assert.deepEqual(got.map(t => t.token_id), want);
            assert.deepEqual(got.map(t => t.tokens_generated), want.map((_, i) => i + 1));
        }
        assert.equal(engine.path.module, 'dibit-simd');
        assert.match(engine.warnings[0].message, /threads is left for simd: unreachable/);
        engine.destroy();
        assert.deepEqual((await all(two.generate(PROMPT, GREEDY))).map(t => t.token_id), want);
        two.destroy();
    }
    // nothing is left to try: an error, and nothing more is done in that module
    const last = await open({ worker: bad('trap=3') });
    await assert.rejects(all(last.generate(PROMPT)), type('internal'));
    await assert.rejects(all(last.generate(PROMPT)), type('internal'));
    last.destroy();
});

test('memory that cannot grow, at whatever step, is out_of_memory', async () => {
    const seen = new Set();
    for (let pages = 64; pages <= 448; pages += 32) {
        const got = await open({ n_threads: 2, worker: bad(`pages=${pages}`) }).catch(e => type('out_of_memory')(e) && e);
        seen.add(got.type ?? got.path.module);
        if (got.type) continue;
        assert.equal((await all(got.generate(PROMPT, GREEDY))).length, 16);
        const clone = await got.clone().catch(e => type('out_of_memory')(e) && null);
        await all(got.generate(`${PROMPT}.`, GREEDY)).catch(type('out_of_memory')); // a shared page becomes its own
        clone?.destroy();
        assert.equal((await all(got.generate(PROMPT, GREEDY))).length, 16); // unharmed
        got.destroy();
    }
    assert.ok(seen.has('out_of_memory') && seen.has('dibit-threads'), [...seen].join());
});

test('a self-test that fails is remembered, and after three the module is not tried', async () => {
    const kept = new Map();
    globalThis.localStorage = { getItem: k => kept.get(k) ?? null, setItem: (k, v) => kept.set(k, v) };
    for (let i = 0; i < 3; i++) {
        const engine = await open({ n_threads: 2, worker: bad('self_test') });
        assert.match(engine.warnings[0].message, /self-test/);
        assert.equal(engine.path.module, 'dibit-simd');
        engine.destroy();
    }
    assert.match([...kept.values()][0], /feature=wasm_threads off 3 3/);
    const engine = await open({ n_threads: 2 });
    assert.deepEqual([engine.path.module, engine.warnings.length], ['dibit-simd', 0]);
    engine.destroy();
    delete globalThis.localStorage;
    await assert.rejects(open({ worker: bad('self_test') }), type('unsupported'));
});

// ---- workers that end, or never begin ----

test('a worker that is killed at any moment rejects all that waits', async () => {
    for (let i = 0; i < 6; i++) {
        const w = worker(), opening = open({ worker: w, watchdog_s: 1 });
        setTimeout(() => w.thread.terminate(), 40 * i); // behind the package's back
        const engine = await opening.catch(e => type('internal')(e) && null);
        if (!engine) continue;
        setTimeout(() => w.thread.terminate(), 5 * i);
        const results = await Promise.allSettled([all(engine.generate(LONG, { max_new_tokens: 1e6 })), all(engine.generate(PROMPT))]);
        for (const r of results) assert.ok(r.status === 'rejected' && type('internal')(r.reason));
        await assert.rejects(engine.memory(), e => type('internal')(e) && /silent/.test(e.message));
    }
});

test('a worker that is silent, fails, or cannot be read is an error', async () => {
    const fake = more => ({ postMessage() {}, terminate() { this.ended = true; }, ...more });
    const open = w => createEngine({ model: 'http://127.0.0.1:1/m.gguf', worker: w, watchdog_s: 1 });
    const silent = fake();
    await assert.rejects(open(silent), e => type('internal')(e) && /silent for 1 s/.test(e.message));
    assert.ok(silent.ended);
    const failing = fake({ postMessage() { setTimeout(() => this.onerror({ message: 'bad script' })); } });
    await assert.rejects(open(failing), e => type('internal')(e) && /bad script/.test(e.message));
    const odd = fake({ postMessage() { setTimeout(() => this.onmessageerror()); } });
    await assert.rejects(open(odd), type('internal'));
    const missing = new Worker(new URL('./no-such-file.js', import.meta.url));
    await assert.rejects(open(missing), type('internal'));
});
