// unit-engine.mjs - the package as a page uses it, with a worker, but under node.
// usage: node unit-engine.mjs FOLDER (of the modules) MODEL
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { serve } from './server.mjs';
import { Worker } from './worker.mjs';
import { createEngine } from '../src/index.js';

const folder = process.env.DIBIT_WASM ?? 'build/web', model = process.env.DIBIT_MODEL ?? 'models/dibit-34m.gguf';
const files = { '/m.gguf': { body: readFileSync(model) } };
for (const name of ['simd', 'threads', 'relaxed1', 'relaxed'])
    files[`/dibit-${name}.wasm`] = { body: readFileSync(`${folder}/dibit-${name}.wasm`), type: 'application/wasm' };
const { url } = await serve(files);
const worker = () => new Worker(new URL('../src/worker.js', import.meta.url));
const open = (more = {}) => createEngine({ model: `${url}/m.gguf`, wasmUrl: url, worker: worker(), n_ctx: 512, ...more });

async function all(tokens) {
    const out = [];
    for await (const t of tokens) out.push(t);
    return out;
}

test('generates, counts and ends', async () => {
    const seen = [], engine = await open({ onProgress: p => seen.push(p) });
    assert.equal(engine.contextWindow, 512);
    const got = await all(engine.generate('The history of the city begins', { max_new_tokens: 20, temperature: 0 }));
    assert.equal(got.length, 20);
    assert.deepEqual(got.at(-1).finish_reason, 'length');
    assert.equal(got.map(t => t.finished).filter(Boolean).length, 1);
    console.log(got.map(t => t.token).join(''), engine.contextUsage, await engine.memory(), engine.info, engine.path);
    const again = await all(engine.generate('The history of the city begins', { max_new_tokens: 20, temperature: 0 }));
    assert.deepEqual(again, got);
    const chat = await engine.chat.completions.create({ messages: [{ role: 'user', content: 'Who are you?' }], max_tokens: 8, temperature: 0 });
    console.log(JSON.stringify(chat));
    for await (const c of await engine.chat.completions.create({ stream: true, stream_options: { include_usage: true },
        messages: [{ role: 'user', content: 'Who are you?' }], max_tokens: 3, temperature: 0 })) console.log(JSON.stringify(c));
    const two = await engine.clone();
    console.log(two.contextUsage, await two.measureContextUsage('hello world'));
    two.destroy();
    engine.destroy();
});
