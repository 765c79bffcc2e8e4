// measure.mjs - the rounds of speed.mjs, the same under node and in browsers.
import { now, open } from '../../tests/wasm-core.mjs';

const PROMPT = 'The history of the city begins with a river, a bridge and a market. '.repeat(12);

// One configuration: a function that runs a round.
function prepare(m, data, nThreads, tokens) {
    const e = open(m, m.put(data), data.length, { n_threads: nThreads, repack_in_place: 1 });
    const s = e.session({ n_ctx: 512 }), ids = e.tokenize(PROMPT).slice(0, 128), empty = new Int32Array(0);
    const profile = m.make('DibitProfile'), weights = layersWeights(m, e), { x } = m, STEPS = 32;
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
        for (let i = 0; i < STEPS; i++) e.ok(x.dibit_forward(s.p, one, 1, 0, e.err));
        x.dibit_profile(s.p, 0, profile);
        x.free(one);
        const ns = Number(m.view().getBigUint64(profile + m.at['DibitProfile.matmul_ns'], true));
        return { decode, prefill, weights: STEPS * weights / ns };
    };
}

// Weights of all layers, of the last one without what only the logits need.
function layersWeights(m, e) {
    const info = m.make('DibitTensorInfo');
    const n = m.x.dibit_tensor_info(e.engine, -1, info), of = {};
    let sum = 0, last = 0;
    for (let i = 0; i < n; i++) {
        m.x.dibit_tensor_info(e.engine, i, info);
        const name = m.text(m.get('DibitTensorInfo', info, 'name'));
        const shape = d => Number(m.view().getBigUint64(info + m.at['DibitTensorInfo.shape'] + 8 * d, true));
        const layer = /^blk\.(\d+)\.(attn_[qkvo]|ffn_\w+)/.exec(name);
        if (!layer || /norm/.test(name)) continue;
        sum += of[name] = shape(0) * shape(1);
        last = Math.max(last, +layer[1]);
    }
    for (const [name, count] of Object.entries(of))
        if (name.startsWith(`blk.${last}.`) && !/attn_[qkv]\./.test(name)) sum -= count;
    m.x.free(info);
    return sum;
}

// specs: [{file, module, threads}]; start(module, threads) and read(file) are the host's. Returns
// {dot: [..], chain: [..], runs: [{file, module, threads, got: [{decode, prefill, weights}, ..]}]}.
export async function measure({ specs, rounds, tokens, start, read, dotModule }) {
    const { instance } = await WebAssembly.instantiate(dotModule), result = { dot: [], chain: [], runs: [] };
    const rate = (f, n) => {
        const t = now();
        f(n);
        return n * 4096 / (now() - t) / 1e6;
    };
    for (const spec of specs) {
        const m = await start(spec.module, spec.threads);
        result.runs.push({ ...spec, round: prepare(m, await read(spec.file), spec.threads, tokens), got: [] });
    }
    for (let i = 0; i <= rounds; i++) { // the first one warms up
        const dot = rate(instance.exports.dot, 30000), chain = rate(instance.exports.dot_chain, 20000);
        if (i) result.dot.push(dot);
        if (i) result.chain.push(chain);
        for (const run of result.runs) {
            const got = run.round();
            if (i) run.got.push({ ...got, share: 100 * got.weights / dot, of_chain: 100 * got.weights / chain });
        }
    }
    for (const run of result.runs) delete run.round;
    return result;
}
