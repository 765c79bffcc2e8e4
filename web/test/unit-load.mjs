// unit-load.mjs - a model's way into memory and into the store, with everything that can go wrong on it:
// a real server that misbehaves, private files that fail at each write.
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { after, beforeEach, test } from 'node:test';
import { serve } from '../../tools/serve.mjs';
import { loadModel, shardsOf } from '../src/load.js';
import { CHUNK } from '../src/store.js';
import { FakeOpfs, FakeWasm } from './files.mjs';

const N = 5 * CHUNK + 12345;
const data = Buffer.alloc(N);
for (let i = 0, x = 1; i < N; i++) data[i] = x = (x * 1103515245 + 12345) >>> 0 >>> 3;
const folder = mkdtempSync(`${tmpdir()}/dibit-`), name = '/x/m.gguf';
writeFileSync(`${folder}/m.gguf`, data);
const server = await serve({ mounts: { '/x/': folder } });
const url = server.url + name;
after(() => { rmSync(folder, { recursive: true }); return server.close(); });

let opfs;
beforeEach(() => {
    opfs = new FakeOpfs();
    Object.defineProperty(globalThis, 'navigator', { configurable: true, value: { storage: opfs } });
    server.clear();
    server.log.length = 0;
});

/** Loads and checks every byte; gives what was seen on the way. */
async function load(more = {}) {
    const wasm = new FakeWasm(), seen = { stages: new Set(), warnings: [], progress: [] };
    try {
        seen.image = await loadModel({
            model: url, wasm: Promise.resolve(wasm), signal: new AbortController().signal, plan: () => ({}),
            onProgress: p => { seen.stages.add(p.stage); seen.progress.push(p); }, warn: w => seen.warnings.push(w), ...more,
        });
        const { ptr } = seen.image.images[0];
        assert.ok(Buffer.from(wasm.bytes.buffer, ptr, N).equals(data), 'every byte is there');
        assert.equal(wasm.taken, 1);
    } catch (e) {
        assert.equal(wasm.taken, 0, 'a failed load leaves no memory taken');
        throw e;
    }
    return seen;
}
const type = expected => e => e.type === expected || assert.fail(`${e.type}: ${e.stack}`);
const sent = () => server.log.filter(r => r.path === name).reduce((n, r) => n + r.sent, 0);

test('a file comes from the network, then from the store, with one look at the server', async () => {
    const first = await load();
    assert.deepEqual([...first.stages], ['download']);
    assert.deepEqual(first.progress.at(-1), { loaded: N, total: N, stage: 'download' });
    assert.deepEqual(first.warnings, []);
    const before = sent(), second = await load();
    assert.deepEqual([...second.stages], ['cache']);
    assert.equal(sent(), before);
});

test('offline the store is enough', async () => {
    await load();
    server.rule('/x/', { drop: 1 });
    assert.deepEqual([...(await load()).stages], ['cache']);
});

test('offline without a store it is a download error', async () => {
    server.rule('/x/', { drop: 1 });
    await assert.rejects(load(), type('download'));
});

test('a connection that breaks is taken up again where it broke', async () => {
    server.rule(name, { cut: 2 * CHUNK + 1000 }, 1);
    await load();
    assert.equal(server.log[1].status, 206);
    assert.equal(sent(), N);
});

test('what came of a broken download is used the next time', async () => {
    server.rule(name, { cut: 2 * CHUNK + 1000 }, 1);
    server.rule(name, { status: 404 }, 1);
    await assert.rejects(load(), type('download'));
    server.clear();
    const seen = await load();
    assert.deepEqual([...seen.stages], ['cache', 'download']);
    assert.equal(server.log.at(-1).range, `bytes=${2 * CHUNK}-`);
    assert.ok(sent() < N + CHUNK);
});

test('a file that changed between two visits is fetched anew', async () => {
    await load();
    utimesSync(`${folder}/m.gguf`, 1e9, 1e9);
    assert.ok((await load()).stages.has('download'));
    assert.deepEqual([...(await load()).stages], ['cache']);
});

test('a file that changes while a download is broken starts again', async () => {
    server.rule(name, { cut: 2 * CHUNK, etag: 'other' }, 1);
    await load();
    assert.ok(sent() >= N + 2 * CHUNK && sent() < 2 * N);
});

test('a server without ranges sends it all again', async () => {
    server.rule(name, { cut: 2 * CHUNK }, 1);
    server.rule(name, { norange: 1 });
    await load();
    assert.equal(sent(), N + 2 * CHUNK);
});

test('errors that no further try would mend are told at once', async () => {
    server.rule(name, { status: 403 });
    await assert.rejects(load(), e => type('download')(e) && /answered 403/.test(e.message) && e.details.status === 403);
    assert.equal(server.log.length, 1);
});

test('an overloaded server is asked again', async () => {
    server.rule(name, { status: 503 }, 2);
    await load();
    assert.equal(server.log.length, 3);
});

test('each chunk in the store is checked against its hash', async () => {
    await load();
    const [path] = [...opfs.files.keys()].filter(k => /m.gguf$/.test(k));
    opfs.files.get(path).bytes[3 * CHUNK + 7] ^= 1;
    assert.ok((await load()).stages.has('download'));
});

test('half a manifest is none', async () => {
    await load();
    const [path] = [...opfs.files.keys()].filter(k => /json$/.test(k)), file = opfs.files.get(path);
    file.bytes = file.bytes.slice(0, file.bytes.length / 2);
    assert.deepEqual([...(await load()).stages], ['download']);
    assert.deepEqual([...(await load()).stages], ['cache']);
});

test('a quota error at any write is named, survived and leaves nothing behind', async () => {
    await load();
    const writes = opfs.writes;
    assert.ok(writes >= 7);
    for (let n = 0; n < writes; n++) {
        opfs.files.clear();
        opfs.writes = 0;
        opfs.fail = i => { if (i === n) throw Object.assign(new Error('full'), { name: 'QuotaExceededError' }); };
        const seen = await load();
        assert.deepEqual(seen.warnings.map(w => w.type), ['quota'], `write ${n}`);
        assert.deepEqual([...opfs.files.keys()].filter(k => /json$/.test(k)), [], `write ${n}`);
    }
});

test('what is larger than the storage that is left is not begun', async () => {
    opfs.estimate = async () => ({ quota: 2 * CHUNK, usage: CHUNK });
    const seen = await load();
    assert.equal(seen.warnings[0].type, 'quota');
    assert.equal(opfs.writes, 0);
});

test('a broken store is left, with a warning', async () => {
    opfs.fail = () => { throw new Error('the disk is gone'); };
    const seen = await load();
    assert.equal(seen.warnings.length, 1);
    assert.match(seen.warnings[0].message, /the disk is gone/);
});

test('any map is a store', async () => {
    const store = new Map();
    assert.deepEqual([...(await load({ store })).stages], ['download']);
    assert.equal(store.size, 7);
    assert.deepEqual([...(await load({ store })).stages], ['cache']);
    assert.equal(opfs.files.size, 0);
});

test('store: memory keeps nothing', async () => {
    await load({ store: 'memory' });
    await load({ store: 'memory' });
    assert.equal(sent(), 2 * N);
    assert.equal(opfs.files.size, 0);
});

test('an abort at any moment ends the load and keeps what came', async () => {
    for (let at = 0; at < 5; at++) {
        const control = new AbortController();
        const onProgress = p => { if (p.loaded >= at * CHUNK) control.abort(); };
        await assert.rejects(load({ signal: control.signal, onProgress }), type('aborted'));
    }
    const seen = await load();
    assert.ok(seen.stages.has('cache') && seen.stages.has('download'));
});

test('the plan sees the beginning and refuses before the rest comes', async () => {
    server.rule(name, { slow: 4e6 });
    const asked = [];
    const plan = ([{ head, size }]) => {
        asked.push(head.length);
        assert.equal(size, N);
        assert.ok(data.subarray(0, head.length).equals(head));
        if (head.length < 300000) return { need: 300000, part: 0 };
        throw Object.assign(new Error('too large'), { type: 'out_of_memory' });
    };
    await assert.rejects(load({ plan }), type('out_of_memory'));
    assert.ok(asked.length >= 2);
    assert.ok(sent() < N / 2, `${sent()} bytes were sent`);
});

test('a header that never ends is an error', async () => {
    await assert.rejects(load({ plan: ([{ head }]) => ({ need: head.length + 1, part: 0 }) }), type('format'));
});

test('a Blob comes by pieces', async () => {
    const seen = await load({ model: new Blob([data]) });
    assert.deepEqual([...seen.stages], ['download']);
    assert.equal(opfs.files.size, 0);
});

test('a stream needs no size: the header says it', async () => {
    const model = (async function* () { for (let i = 0; i < N; i += 100000) yield data.subarray(i, i + 100000); })();
    await load({ model, plan: ([{ size }]) => { assert.equal(size, undefined); return { file: N }; } });
    const short = (async function* () { yield data.subarray(0, 1000); })();
    await assert.rejects(load({ model: short, plan: () => ({ file: N }) }), e => type('format')(e) && /ends inside/.test(e.message));
    const long = (async function* () { yield data; yield data; })();
    await assert.rejects(load({ model: long, plan: () => ({ file: N }) }), e => type('download')(e) && /more came/.test(e.message));
});

test('shards come together in one block', async () => {
    const parts = shardsOf(`${server.url}/x/s-00002-of-00003.gguf`);
    assert.equal(parts.length, 3);
    assert.match(parts[0], /s-00001-of-00003\.gguf$/);
    assert.deepEqual(shardsOf('http://a/b.gguf'), ['http://a/b.gguf']);
    const cuts = [0, CHUNK + 1, 4 * CHUNK, N];
    const pieces = cuts.slice(1).map((end, i) => data.subarray(cuts[i], end));
    pieces.forEach((piece, i) => writeFileSync(`${folder}/s-0000${i + 1}-of-00003.gguf`, piece));
    for (const stage of ['download', 'cache']) {
        const wasm = new FakeWasm(), stages = new Set();
        const image = await loadModel({ model: parts[0], wasm: Promise.resolve(wasm), signal: new AbortController().signal,
            plan: files => { files.forEach(({ head, size }, i) => assert.ok(size === pieces[i].length && head.length >= 1 << 16 &&
                pieces[i].subarray(0, head.length).equals(head))); return {}; }, onProgress: p => stages.add(p.stage), warn: assert.fail });
        image.images.forEach(({ ptr, size }, i) => {
            assert.ok(Buffer.from(wasm.bytes.buffer, ptr, size).equals(pieces[i]));
            assert.equal(ptr % 64, 0);
        });
        assert.deepEqual([...stages], [stage]);
    }
    server.rule('/x/s-00002', { status: 404 });
    await assert.rejects(loadModel({ model: parts[0], store: 'memory', wasm: Promise.resolve(new FakeWasm()),
        signal: new AbortController().signal, plan: () => ({}), onProgress() {}, warn() {} }), type('download'));
});
