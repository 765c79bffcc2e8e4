// cache.mjs - what attention costs in the modules of `make wasm` under node, by type of the KV cache: at a
// depth of random keys and values, the best of rounds in which all types take turns (on a machine with
// other work the median tells of that).
// usage: node cache.mjs FOLDER MODULE MODEL.gguf [DEPTH] [ROUNDS]
//   e.g. node bench/web/cache.mjs build/web relaxed1 models/dibit-34m.gguf 2048
// Columns: milliseconds a token in attention, tokens/s of whole passes without logits, bytes of the cache.
import { readFileSync } from 'node:fs';
import { open, start } from '../../tests/wasm-host.mjs';

const [folder, module, model, depth = 2048, rounds = 5] = process.argv.slice(2);
const types = ['f16', 'q8', 'q4', 'k3', 'k2'], STEPS = 16, n = +depth;
const m = await start(`${folder}/dibit-${module}.wasm`, 1), data = readFileSync(model);
const e = open(m, m.put(data), data.length, { n_threads: 1 }), profile = m.make('DibitProfile');
const ids = new Int32Array(n).map((_, i) => 5 + i % 1000), list = m.put(new Uint8Array(ids.buffer));
const ns = field => Number(m.view().getBigUint64(profile + m.at[`DibitProfile.${field}`], true));

const runs = types.map(type => {
    const s = e.session({ n_ctx: n + STEPS + 64, cache_k: type, cache_v: type });
    return { type, s, kv: e.memory(s).kv, got: [] };
});
for (let r = 0; r < +rounds; r++)
    for (const { s, got } of runs) {
        e.sync(s, new Int32Array(0));
        e.ok(m.x.dibit_fill(s.p, list, n, e.err));
        m.x.dibit_profile(s.p, 1, profile);
        for (let i = 0; i < STEPS; i++) e.ok(m.x.dibit_forward(s.p, list, 1, 0, e.err));
        m.x.dibit_profile(s.p, 0, profile);
        got.push([ns('attend_ns'), ns('total_ns')].map(t => t / STEPS / 1e6));
    }
console.log(`V8 ${process.versions.v8}, ${module}, ${n} positions, ${rounds} rounds, best`);
console.log('cache    attention  tokens/s  bytes');
for (const { type, got, kv } of runs) {
    const [attend, total] = [0, 1].map(i => Math.min(...got.map(g => g[i])));
    console.log(`${type.padEnd(6)} ${attend.toFixed(3).padStart(8)} ms  ${(1000 / total).toFixed(1).padStart(8)}  ${kv}`);
}
