// speed.mjs - how fast the modules of `make wasm` run under node: medians of rounds in which all
// configurations take turns, so that what else the machine does meets all of them.
// usage: node speed.mjs FOLDER [-r ROUNDS] [-n TOKENS] [-m MODULE:THREADS,..] MODEL.gguf ..
//   e.g. node bench/web/speed.mjs build/web -m relaxed1:1,relaxed:2 s2.gguf q4.gguf
// Columns: decode and prefill in tokens/s; billions of weights a second in the matrix products of the
// layers while decoding (activations' quantization counted), and that as a share of the relaxed dot's
// rate in the same round.
import { readFileSync } from 'node:fs';
import { basename } from 'node:path';
import { now, open, start } from '../../tests/wasm-host.mjs';

let rounds = 7, tokens = 64, modules = 'relaxed1:1,relaxed:2', files = [];
const [folder, ...args] = process.argv.slice(2);
for (let a; (a = args.shift());) {
    if (a === '-r') rounds = +args.shift();
    else if (a === '-n') tokens = +args.shift();
    else if (a === '-m') modules = args.shift();
    else files.push(a);
}
const median = v => v.slice().sort((a, b) => a - b)[v.length >> 1];
const both = (v, digits) => `${median(v).toFixed(digits)} (${Math.max(...v).toFixed(digits)})`;
const prompt = 'The history of the city begins with a river, a bridge and a market. '.repeat(12);

async function prepare(file, spec) {
    const [name, n] = spec.split(':'), nThreads = +n;
    const m = await start(`${folder}/dibit-${name}.wasm`, nThreads), data = readFileSync(file);
    const image = m.put(data), e = open(m, image, data.length, { n_threads: nThreads });
    const s = e.session({ n_ctx: 512 }), ids = e.tokenize(prompt).slice(0, 128);
    const profile = m.make('DibitProfile'), logits = 0;
    const matmulWeights = layersWeights(m, e);
    const x = m.x, empty = new Int32Array(0);
    return () => {
        e.sync(s, empty);
        let t = now();
        e.sync(s, ids);
        const prefill = ids.length / (now() - t) * 1e3;
        t = now();
        const got = e.generate(s, tokens).ids;
        const decode = got.length / (now() - t) * 1e3;
        // the layers alone: a pass without logits leaves out what only they need
        const one = m.put(new Uint8Array(Int32Array.of(got[0]).buffer));
        x.dibit_profile(s.p, 1, profile);
        for (let i = 0; i < 32; i++) e.ok(x.dibit_forward(s.p, one, 1, logits, e.err));
        x.dibit_profile(s.p, 0, profile);
        x.free(one);
        const ns = Number(m.view().getBigUint64(profile + m.at['DibitProfile.matmul_ns'], true));
        return { decode, prefill, weights: 32 * matmulWeights / ns };
    };
}

// Weights of all layers, of the last one without what only the logits need.
function layersWeights(m, e) {
    const info = m.make('DibitTensorInfo');
    const n = m.x.dibit_tensor_info(e.engine, -1, info), of = {};
    let sum = 0, last = 0;
    const read = i => {
        m.x.dibit_tensor_info(e.engine, i, info);
        const shape = [0, 1].map(d =>
            Number(m.view().getBigUint64(info + m.at['DibitTensorInfo.shape'] + 8 * d, true)));
        return [m.text(m.get('DibitTensorInfo', info, 'name')), shape[0] * shape[1]];
    };
    for (let i = 0; i < n; i++) {
        const [name, count] = read(i), l = /^blk\.(\d+)\.(attn_[qkvo]|ffn_\w+)/.exec(name);
        if (!l || /norm/.test(name)) continue;
        sum += count;
        last = Math.max(last, +l[1]);
        of[name] = count;
    }
    for (const [name, count] of Object.entries(of))
        if (name.startsWith(`blk.${last}.`) && !/attn_[qkv]\./.test(name)) sum -= count;
    m.x.free(info);
    return sum;
}

async function dotRate() {
    const { instance } = await WebAssembly.instantiate(readFileSync(`${folder}/bench-dot.wasm`));
    return () => {
        const t = now();
        instance.exports.dot(30000);
        return 30000 * 4096 / (now() - t) / 1e6;
    };
}

const dot = await dotRate(), runs = [];
for (const file of files)
    for (const spec of modules.split(','))
        runs.push({ name: `${basename(file, '.gguf')} ${spec}`, run: await prepare(file, spec), got: [] });
const dots = [];
for (let i = 0; i < rounds + 1; i++) {
    const rate = dot();
    if (i) dots.push(rate);
    for (const r of runs) {
        const got = r.run();
        if (i) r.got.push({ ...got, share: got.weights / rate }); // the first round warms up
    }
}
console.log(`V8 ${process.versions.v8}, ${rounds} rounds, medians (best); relaxed dot ${both(dots, 1)} billion a second`);
console.log('model module:threads            decode         prefill      Gweights/s      of the dot');
for (const r of runs) {
    const col = (k, digits, width, by = 1) => both(r.got.map(g => by * g[k]), digits).padEnd(width);
    console.log(r.name.padEnd(31) + col('decode', 1, 15) + col('prefill', 0, 13) + col('weights', 2, 16) +
        col('share', 0, 10, 100) + '%');
}
process.exit(0);
