// compare.js - in the page: opens an engine, runs it once to warm up and once measured, and closes it again, so
// that no idle engine's threads stand in another's way.
import { createEngine } from '/dist/index.js';
import { Wllama } from '/wllama/index.js';

const PROMPT = 'The history of the city begins', N = 64;
async function openDibit({ url, threads }) {
    const engine = await createEngine({ model: url, n_threads: threads, n_ctx: 512, cache_type_k: 'f16', cache_type_v: 'f16', store: 'memory' });
    const pieces = async function* () {
        for await (const t of engine.generate(PROMPT, { max_new_tokens: N, temperature: 0 })) yield t.token;
    };
    return { pieces, close: () => engine.destroy(), says: `${engine.path.module}, ${engine.path.threads}` };
}

async function openWllama({ url, threads }) {
    const engine = new Wllama({ default: '/wllama/wasm/wllama.wasm' }, { suppressNativeLog: true });
    const file = await (await fetch(url)).blob();
    await engine.loadModel([file], { n_ctx: 512, n_threads: threads, n_gpu_layers: 0, n_parallel: 1 });
    const pieces = async function* () {
        const options = { prompt: PROMPT, max_tokens: N, temperature: 0, top_k: 1, stream: true, ignore_eos: true, cache_prompt: false };
        for await (const c of await engine.createCompletion(options)) if (c.choices[0]?.text !== undefined && !c.choices[0].finish_reason) yield c.choices[0].text;
    };
    return { pieces, close: () => engine.exit(), says: `multithread ${engine.isMultithread?.()}, ${engine.getNumThreads?.()}` };
}

/** Tokens a second between the first and the last piece, and milliseconds to the first. */
async function timed(pieces) {
    const begun = performance.now(), times = [];
    let text = '';
    for await (const piece of pieces) {
        times.push(performance.now());
        text += piece;
    }
    return { n: times.length, first: times[0] - begun, speed: 1000 * (times.length - 1) / (times.at(-1) - times[0]), text };
}

window.tests = {
    async run(configuration) {
        const engine = await (configuration.engine === 'dibit' ? openDibit : openWllama)(configuration);
        await timed(engine.pieces());
        const result = await timed(engine.pieces());
        await engine.close();
        return { ...result, says: engine.says };
    },
};
