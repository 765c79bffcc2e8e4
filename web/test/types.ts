// types.ts - a program that uses all of the package's interface; tests/bundle.sh compiles it.
import { availability, capabilities, createEngine, DibitError } from 'dibit';
import type { Engine, EngineOptions, Progress, Store, Token } from 'dibit';

const store: Store = new Map<string, Uint8Array>();
const options: EngineOptions = {
    model: 'model.gguf', n_ctx: 512, cache_type_k: 'k3', cache_type_v: 'k2', n_threads: 2, memory_budget: 1e9, store,
    signal: new AbortController().signal, backend: 'auto', onProgress: (p: Progress) => console.log(p.stage, p.loaded),
};

export async function main(): Promise<void> {
    if (await availability({ model: 'model.gguf' }) === 'unavailable') return;
    console.log((await capabilities()).wasm_simd);
    let engine: Engine;
    try {
        engine = await createEngine(options);
    } catch (e) {
        if (e instanceof DibitError && e.type === 'out_of_memory') console.log(e.details?.needed);
        throw e;
    }
    for await (const t of engine.generate('text', { seed: 1n, stop: ['.'] })) use(t);
    const whole = await engine.chat.completions.create({ messages: [{ role: 'user', content: 'Hi' }] });
    console.log(whole.choices[0].message.content, whole.usage.total_tokens);
    const chunks = await engine.chat.completions.create({ messages: [], stream: true, stream_options: { include_usage: true } });
    for await (const c of chunks) console.log(c.choices[0]?.delta.content, c.usage?.prompt_tokens_details.cached_tokens);
    const two = await engine.clone(), memory = await two.memory();
    console.log(memory.peak, two.contextUsage / two.contextWindow, await two.measureContextUsage('x'));
    console.log(two.plan.map(l => l.reason), two.path.threads, two.info.n_params, two.warnings.length);
    two.destroy();
    // @ts-expect-error: there is no such cache type
    await createEngine({ model: new Blob(), cache_type_k: 'q5' });
}

function use(t: Token): string {
    return t.finished ? `${t.finish_reason}` : t.token;
}
