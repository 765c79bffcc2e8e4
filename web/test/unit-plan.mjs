// unit-plan.mjs - the policy's exports of a module: what a model takes, from pieces of its header.
// usage: node --test unit-plan.mjs (DIBIT_WASM: folder of the modules; DIBIT_MODEL: a GGUF file)
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { open, start } from '../../tests/wasm-host.mjs';
import { Wasm } from '../src/wasm.js';
import { split } from './files.mjs';

const folder = process.env.DIBIT_WASM ?? 'build/web', model = process.env.DIBIT_MODEL ?? 'models/dibit-34m.gguf';
const file = readFileSync(model);
const lines = []; // of the module's log
const m = await start(`${folder}/dibit-simd.wasm`, 1, (self, p, n) => lines.push(new TextDecoder().decode(new Uint8Array(self.x.memory.buffer).slice(p, p + n))));
const err = m.make('DibitError'), out = m.x.malloc(1 << 16);

const wasm = new Wasm(m.x, m.memory), call = (name, ...args) => wasm.lines(name, ...args);
const parts = (head, size) => (head.length || size ? [{ head, size }] : []);
const object = lines => Object.fromEntries(lines.map(([k, v]) => [k, v]));
const peek = (n, request = '', total = file.length) =>
    object(call('dibit_peek', [{ head: file.subarray(0, n), size: total }], request));

test('peek asks for more until the header is there', () => {
    let n = 4096, steps = 0, got;
    while ((got = peek(n)).need) {
        assert.deepEqual(Object.keys(got), ['need']);
        assert.ok(Number(got.need) > n && Number(got.need) <= file.length);
        n = Number(got.need);
        assert.ok(++steps < 20);
    }
    assert.equal(got.architecture, 'llama');
    assert.ok(Number(got.header) <= n && Number(got.tensors) + Number(got.header) <= file.length);
});

test('peek counts what an engine and its session take', async () => {
    const request = { n_ctx: 512, n_threads: 1, cache_type_k: 'k3', cache_type_v: 'q8' };
    const text = Object.entries(request).map(([k, v]) => `${k}=${v}`).join('\n');
    const got = peek(1 << 20, text);
    const e = open(m, m.put(file), file.length, { n_threads: 1 });
    const s = e.session({ n_ctx: 512, cache_k: 'k3', cache_v: 'q8' }), memory = e.memory(s);
    assert.equal(Number(got.weights), memory.weights);
    assert.equal(Number(got.kv), memory.kv);
    assert.ok(Number(got.scratch) >= memory.scratch);
    assert.equal(Number(got.total), Number(got.weights) + Number(got.kv) + Number(got.scratch));
    s.free();
    e.close();
});

test('peek refuses what is wrong', () => {
    assert.throws(() => peek(1000, 'n_ctx=0'), /n_ctx/);
    assert.throws(() => peek(1000, '', -1), /size/);
    assert.throws(() => peek(1000, '', NaN), /size/);
    assert.throws(() => call('dibit_peek', parts(new Uint8Array(100), 1000), ''), /not a GGUF file/);
    assert.throws(() => peek(1000, '', 2 ** 40), /too large/);
});

test('peek knows shards by their headers', () => {
    const shards = split(file, 3), all = n => call('dibit_peek', shards.map((s, i) => ({ head: s.subarray(0, n[i]), size: s.length })), '');
    const want = [4096, 24, 24];
    let got;
    while ((got = all(want))[0][0] === 'need') {
        const [, bytes, part] = got[0];
        assert.ok(Number(bytes) > want[part]);
        want[part] = Number(bytes);
    }
    const whole = object(call('dibit_peek', [{ head: file.subarray(0, 1 << 20), size: file.length }], '')), shared = object(got);
    for (const key of ['n_params', 'weights', 'kv', 'scratch']) assert.equal(shared[key], whole[key]);
    assert.throws(() => call('dibit_peek', [{ head: shards[0], size: shards[0].length }], ''), /one of 3 shards/);
});

const plan = (device, request = '', n = 1 << 20, total = file.length) =>
    Object.fromEntries(call('dibit_plan_text', device, parts(file.subarray(0, n), n && total), request)
        .map(([k, value, reason]) => [k, { value, reason }]));
const chrome = ['user_agent=Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/151.0.0.0 Safari/537.36',
    'memory_mb=8192', 'cores=4', 'wasm_simd=true', 'wasm_relaxed_dot=true', 'wasm_relaxed_madd=true', 'wasm_threads=true'];

test('plan: every line has a value and a reason', () => {
    const got = plan([...chrome, 'isolated=true', 'shared_memory=true'].join('\n'));
    assert.equal(got.backend.value, 'wasm');
    assert.equal(got.module.value, 'dibit-relaxed.wasm');
    assert.equal(got.n_threads.value, '4');
    assert.equal(got.fits.value, 'yes');
    assert.equal(Number(got.total.value), ['weights', 'kv', 'scratch', 'staging'].reduce((n, k) => n + Number(got[k].value), 0));
    for (const [key, { value, reason }] of Object.entries(got)) assert.ok(value && reason, key);
    assert.equal(plan(chrome.join('\n')).module.value, 'dibit-relaxed1.wasm'); // not isolated: one thread
});

test('plan: without a model, with too little of one, and what is wrong', () => {
    const none = plan(chrome.join('\n'), '', 0, 0);
    assert.ok(none.bits && !none.total);
    assert.deepEqual(Object.keys(plan(chrome.join('\n'), '', 100)), ['need']);
    assert.throws(() => plan('memory_mb=lots'), /memory_mb/);
    assert.throws(() => plan('colour=red'), /no known key/);
    assert.throws(() => plan('', 'backend=webgpu'), /not probed/);
    const small = plan(chrome.join('\n'), 'budget_mb=20\nn_ctx=4096');
    assert.equal(small.fits.value, 'no');
    assert.match(small.n_ctx.reason, /needed/);
});

test('plan: a manifest of variants', () => {
    const variants = ['q4 bytes=24000000 kld=0.02 attention=q4 feed_forward=q4', 's3 bytes=20000000 kld=0.07 attention=s3 feed_forward=s3',
        's2 bytes=16600000 kld=0.3 attention=s2 feed_forward=s2'].map(v => `variant=${v}`).join('\n');
    const of = more => plan([...chrome, ...more].join('\n'), variants).variant.value;
    assert.equal(of([]), 'q4'); // memory allows it, and in WebAssembly s3 is slower
    assert.equal(of(['speed_q4=1', 'speed_s3=2']), 's3'); // where a probe says otherwise
    assert.equal(of(['mobile=true', 'memory_mb=1500']), 's2');
});

test('features: a record of what fails, kept as text', () => {
    const stamp = m.put('chrome 151'), f = m.x.dibit_features_open(stamp, 0, 0, err), name = m.put('webgpu'), op = m.put('decode');
    assert.ok(f);
    assert.equal(m.x.dibit_features_enabled(f, name), 1);
    assert.deepEqual([1, 0, 0].map(ok => m.x.dibit_features_result(f, name, ok, err)), [0, 0, 1]);
    assert.equal(m.x.dibit_features_enabled(f, name), 0);
    assert.match(lines[0], /webgpu is off on this device/);
    assert.equal(m.x.dibit_features_time(f, op, 12.5, err), 0);
    assert.ok(m.x.dibit_features_time(f, op, NaN, err) < 0);
    assert.equal(m.text(out, Number(m.x.dibit_features_disabled(f, out, 100))), 'webgpu');
    const text = m.text(out, Number(m.x.dibit_features_text(f, out, 1 << 14)));
    assert.match(text, /feature=webgpu off 3 2\ntime=decode 12.5\n/);
    m.x.dibit_features_close(f);
    const again = (s, t) => {
        const p = m.put(t), q = m.put(s), g = m.x.dibit_features_open(q, p, new TextEncoder().encode(t).length, err);
        const result = [m.x.dibit_features_enabled(g, name), m.text(m.x.dibit_features_note(g))];
        m.x.dibit_features_close(g);
        return result;
    };
    assert.deepEqual(again('chrome 151', text), [0, '']);
    assert.match(again('chrome 152', text)[1], /another version/);
    assert.match(again('chrome 151', text.replace('off 3', 'off 4'))[1], /damaged/);
    assert.equal(m.x.dibit_features_open(m.put(''), 0, 0, err), 0);
});
