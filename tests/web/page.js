// page.js - the half of the browser tests that runs in the browser: each function takes and returns what JSON
// can carry, and is called by run.mjs as `tests.name(argument)`. Only the package's public interface is used.
import * as dibit from '/dist/index.js';

const PROMPT = 'The history of the city begins';
const pause = ms => new Promise(resolve => setTimeout(resolve, ms));
const newWorker = () => new Worker('/dist/worker.js', { type: 'module' });

/** What an attempt gave: its value, or the error's type and text. */
async function attempt(work) {
    try {
        return { value: await work() };
    } catch (error) {
        return { error: { type: error.type, name: error.name, message: String(error.message), details: error.details } };
    }
}

async function collect(engine, prompt, options) {
    const ids = [];
    let text = '', last = null;
    for await (const token of engine.generate(prompt, options)) {
        ids.push(token.token_id);
        text += token.token;
        last = token;
    }
    return { ids, text, finish_reason: last?.finish_reason, finished: last?.finished };
}

const greedy = n => ({ max_new_tokens: n, temperature: 0 });

async function using(options, work) {
    const engine = await dibit.createEngine(options);
    try {
        return await work(engine);
    } finally {
        engine.destroy();
    }
}

/** A store for createEngine that calls `before(operation, key)` first: where that throws, the store fails. */
function faultyStore(before) {
    const kept = new Map();
    return {
        async get(key) { before('get', key); return kept.get(key) ?? null; },
        async set(key, bytes) { before('set', key); kept.set(key, bytes.slice()); },
        async delete(key) { before('delete', key); kept.delete(key); },
    };
}

// A browser under automation keeps its caches in memory; WebKitGTK then drops one as soon as nobody has it open,
// and the engine's worker, which has, ends with the engine. On disk a cache stays.
let held = globalThis.caches?.open('dibit'), begun;

window.tests = {
    /** Starts a test and does not wait for it: for several tabs at once. */
    async begin([name, argument]) {
        begun = attempt(() => window.tests[name](argument));
    },
    result: () => begun,

    attempt: async ([name, argument]) => attempt(() => window.tests[name](argument)),

    /** What the browser has, by probes of our own, beside what the package found. */
    async detect() {
        const bytes = list => new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0, ...list]);
        const has = list => WebAssembly.validate(bytes(list));
        const adapter = await Promise.race([navigator.gpu?.requestAdapter().catch(() => null), pause(5000)]);
        return {
            agent: navigator.userAgent,
            isolated: crossOriginIsolated,
            shared_memory: typeof SharedArrayBuffer === 'function',
            simd: has([1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 8, 1, 6, 0, 65, 0, 253, 15, 11]),
            relaxed_dot: has([1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 19, 1, 17, 0, 65, 0, 253, 15, 65, 0, 253, 15, 65, 0,
                253, 15, 253, 147, 2, 11]),
            memory64: has([5, 3, 1, 4, 1]),
            jspi: typeof WebAssembly.Suspending === 'function',
            opfs: Boolean(navigator.storage?.getDirectory),
            cache_api: typeof caches === 'object',
            locks: Boolean(navigator.locks),
            device_memory: navigator.deviceMemory ?? null,
            cores: navigator.hardwareConcurrency ?? null,
            webgpu: !navigator.gpu ? 'absent' : adapter ? 'adapter' : 'no adapter',
            webgpu_features: adapter ? [...adapter.features].sort() : [],
            capabilities: dibit.capabilities ? await dibit.capabilities() : null,
        };
    },

    /** Loads, generates greedily, and says which way was taken. */
    async generate({ n = 64, prompt = PROMPT, ...options }) {
        const progress = [];
        const onProgress = p => progress.push([p.loaded, p.total, p.stage]);
        const begun = performance.now();
        return using({ ...options, onProgress }, async engine => {
            const opened = performance.now();
            const result = await collect(engine, prompt, greedy(n));
            const done = performance.now();
            return {
                ...result, path: engine.path, plan: engine.plan, info: engine.info, memory: await engine.memory(),
                usage: engine.contextUsage, window: engine.contextWindow,
                progress: progress.length, last: progress.at(-1), stages: [...new Set(progress.map(p => p[2]))],
                ordered: progress.every((p, i) => !i || p[2] !== progress[i - 1][2] || p[0] >= progress[i - 1][0]),
                ms: { open: opened - begun, generate: done - opened },
            };
        });
    },

    /** tests/gpu.c in this browser; fault: as below. */
    gpuOps: ({ fault, ...options }) => new Promise((resolve, reject) => {
        const worker = new Worker(`/tests/gpu-ops.js?${fault ?? ''}`, { type: 'module' });
        worker.onerror = e => reject(new Error(e.message));
        worker.onmessage = ({ data }) => {
            worker.terminate();
            if (data.error) reject(new Error(data.error)); else resolve(data);
        };
        worker.postMessage(options);
    }),

    /** What is said against pipelines of a kernel's text with each of these constants. */
    async gpuCompile({ code, constants }) {
        const device = await (await navigator.gpu.requestAdapter()).requestDevice(), said = [];
        const module = device.createShaderModule({ code });
        for (const c of constants)
            await device.createComputePipelineAsync({ layout: 'auto', compute: { module, entryPoint: 'main', constants: c } })
                .catch(e => said.push(`${JSON.stringify(c)}: ${e.message}`));
        device.destroy();
        return said;
    },

    /** On WebGPU, or as `backend` says, the likeliest tokens unless `sampling` says how they are drawn; `fault`: what goes wrong there (gpu-faults.js). */
    async gpu({ n, fault, sampling, ...options }) {
        localStorage.clear(); // what failed before is not held against this attempt
        const worker = new Worker(`/tests/gpu-worker.js?${fault ?? ''}`, { type: 'module' });
        let last = performance.now(), gap = 0;
        const tasks = []; // of more than 50 ms, where the browser tells
        const watch = new PerformanceObserver(list => tasks.push(...list.getEntries().map(e => e.duration)));
        watch.observe({ type: 'longtask' });
        const clock = setInterval(() => {
            gap = Math.max(gap, performance.now() - last);
            last = performance.now();
        }, 5);
        return using({ backend: 'webgpu', ...options, worker }, async engine => {
            const { ids, text } = await collect(engine, PROMPT, { ...greedy(n), ...sampling });
            clearInterval(clock);
            watch.disconnect();
            return { ids, text, gap, tasks, path: engine.path, warnings: engine.warnings };
        });
    },

    /** Aborts at different times, and two sessions at once. */
    async gpuAbort(options) {
        localStorage.clear();
        return using({ backend: 'webgpu', ...options }, async engine => {
            const before = (await collect(engine, PROMPT, greedy(16))).ids, ms = [], types = new Set();
            for (let i = 0; i < 8; i++) {
                const control = new AbortController(), prompt = PROMPT.repeat(i % 2 ? 1 : 8) + i;
                const going = attempt(() => collect(engine, prompt, { ...greedy(400), signal: control.signal }));
                await pause(20 + 40 * i);
                const begun = performance.now();
                control.abort();
                types.add((await going).error?.type);
                await engine.measureContextUsage('a');
                ms.push(performance.now() - begun);
            }
            const other = await engine.clone();
            const clones = (await Promise.all([engine, other].map(e => collect(e, PROMPT, greedy(16))))).map(r => r.ids);
            other.destroy();
            return { ms, types: [...types], before, clones, after: (await collect(engine, PROMPT, greedy(16))).ids, path: engine.path };
        });
    },

    async chat({ options, text }) {
        return using(options, async engine => {
            const messages = [{ role: 'user', content: text }];
            const body = { messages, max_tokens: 24, temperature: 0 };
            const whole = await engine.chat.completions.create(body);
            let streamed = '', reasons = [], objects = new Set();
            for await (const chunk of await engine.chat.completions.create({ ...body, stream: true })) {
                streamed += chunk.choices[0]?.delta?.content ?? '';
                objects.add(chunk.object);
                if (chunk.choices[0]?.finish_reason) reasons.push(chunk.choices[0].finish_reason);
            }
            return { whole: whole.choices[0].message.content, usage: whole.usage, streamed, reasons, objects: [...objects] };
        });
    },

    async available(options) {
        return dibit.availability(options);
    },

    async clone({ options }) {
        return using(options, async engine => {
            await collect(engine, PROMPT, greedy(8));
            const other = await engine.clone();
            const [a, b] = [await collect(engine, PROMPT, greedy(24)), await collect(other, PROMPT, greedy(24))];
            other.destroy();
            const after = await collect(engine, PROMPT, greedy(24));
            return { same: a.text === b.text && a.text === after.text, n: a.ids.length };
        });
    },

    async measure({ options, text }) {
        return using(options, async engine => ({ n: await engine.measureContextUsage(text), window: engine.contextWindow }));
    },

    /** Milliseconds from abort() until the engine answers again: in prefill, in decode, while loading. */
    async abort({ options, rounds }) {
        const decode = [], prefill = [], loading = [], types = new Set();
        const timed = async (list, engine, wait, work) => {
            const control = new AbortController(), going = attempt(() => work(control.signal));
            await wait();
            const begun = performance.now();
            control.abort();
            const { error, value } = await going;
            if (engine) await engine.measureContextUsage('a');
            list.push(performance.now() - begun);
            types.add(error ? error.type : `no error: ${JSON.stringify(value).slice(0, 60)}`);
        };
        const long = 'The quick brown fox jumps over the lazy dog. '.repeat(120);
        const after = await using(options, async engine => {
            for (let i = 0; i < rounds; i++) {
                const prompt = `${i} ${long}`;
                await timed(prefill, engine, () => pause(20 + 10 * i),
                    signal => collect(engine, prompt, { ...greedy(4), signal }));
                let got;
                const started = new Promise(resolve => { got = resolve; });
                await timed(decode, engine, () => started.then(() => pause(7 * i)), async signal => {
                    for await (const token of engine.generate(PROMPT, { ...greedy(2000), signal })) got(token);
                });
            }
            return collect(engine, PROMPT, greedy(24)); // and goes on as if nothing had been
        });
        for (let i = 0; i < rounds; i++)
            await timed(loading, null, () => pause(10 * i), signal =>
                dibit.createEngine({ ...options, signal, store: 'memory' }).then(e => e.destroy()));
        return { decode, prefill, loading, types: [...types], after: after.ids };
    },

    /** Turns of a timer of the page while the engine works, and the longest gap between two. */
    async freeze({ options }) {
        // messages to oneself, since browsers slow the timers of windows that nobody looks at
        let longest = 0, turns = 0, last = performance.now(), on = true;
        const { port1, port2 } = new MessageChannel();
        port1.onmessage = () => {
            const now = performance.now();
            longest = Math.max(longest, now - last);
            last = now;
            turns++;
            if (on) port2.postMessage(0);
        };
        port2.postMessage(0);
        const result = await window.tests.generate({ ...options, n: 64 });
        on = false;
        return { longest, turns, n: result.ids.length };
    },

    /** Ends the worker at random moments: half of the time loading, half of it generating. */
    async kill({ options, times, seed }) {
        let state = seed;
        const { ms } = await window.tests.generate({ ...options, n: 24 }), span = 2 * ms.open;
        const random = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
        const outcomes = {}, waiting = [];
        for (let i = 0; i < times; i++) {
            const worker = newWorker();
            let tokens = 0;
            const going = attempt(async () => {
                const engine = await dibit.createEngine({ ...options, worker });
                for await (const token of engine.generate(PROMPT, greedy(2000))) tokens += Boolean(token);
                return 'finished';
            });
            await pause(span * random());
            worker.terminate();
            // a worker that ends before it could say anything is missed after a while: that is waited for in the end
            waiting.push(Promise.race([going, pause(90000)]).then(settled => {
                const what = !settled ? 'never settled' : settled.error?.type ?? settled.value;
                const when = `${what}, ${tokens ? 'generating' : 'loading'}`;
                outcomes[when] = (outcomes[when] || 0) + 1;
            }));
            await Promise.race([waiting.at(-1), pause(200)]);
        }
        await Promise.all(waiting);
        return { outcomes, after: (await window.tests.generate({ ...options, n: 24 })).ids };
    },

    /** generate and reset, many times: what stays allocated. */
    async rounds({ options, rounds }) {
        return using(options, async engine => {
            const marks = [];
            for (let i = 0; i <= rounds; i++) {
                const usage = `${i % 7} ${PROMPT}`;
                if ((await collect(engine, usage, { ...greedy(2), seed: i })).ids.length !== 2) throw new Error(`round ${i}`);
                if (i % (rounds / 10) === 0) marks.push(await engine.memory());
            }
            return marks;
        });
    },

    /** The most that a load takes: what the engine says of its own memory, and the JavaScript heap beside it. */
    async peak({ options }) {
        let on = true, heap = 0, n = 0;
        // The browser answers when each of its threads has come to rest, which on a busy machine may be never.
        const late = () => new Promise(resolve => { setTimeout(resolve, 5000, null); });
        const watch = (async () => {
            while (on) {
                const seen = await Promise.race([performance.measureUserAgentSpecificMemory(), late()]);
                heap = Math.max(heap, seen?.bytes ?? 0);
                n += seen !== null;
            }
        })();
        const memory = await using(options, async engine => {
            on = false;
            await watch;
            return engine.memory();
        });
        return { heap, n, memory };
    },

    /** A store that fails at its n-th write, for each n. */
    async quota({ options, fails }) {
        const outcomes = [];
        for (let n = 1; n <= fails; n++) {
            let writes = 0;
            const store = faultyStore(operation => {
                if (operation === 'set' && ++writes >= n) throw new DOMException('no room', 'QuotaExceededError');
            });
            const { value, error } = await attempt(() => window.tests.generate({ ...options, store, n: 8 }));
            outcomes.push({ n, writes, ids: value?.ids, plan: value?.plan, error });
        }
        return outcomes;
    },

    /** A local file, as from a file dialog. */
    async blob({ url, cut, ...options }) {
        let blob = await (await fetch(url)).blob();
        if (cut) blob = blob.slice(0, cut);
        return window.tests.generate({ ...options, model: new File([blob], 'model.gguf'), n: 24 });
    },

    async stream({ url, ...options }) {
        return window.tests.generate({ ...options, model: (await fetch(url)).body, n: 24 });
    },

    /** Forgets all that was stored. */
    async forget() {
        for (const name of await globalThis.caches?.keys() ?? []) await caches.delete(name);
        const root = await navigator.storage?.getDirectory?.();
        if (root) for await (const name of root.keys()) await root.removeEntry(name, { recursive: true });
        localStorage.clear();
        held = globalThis.caches?.open('dibit');
        for (const { name } of await indexedDB.databases?.() ?? []) indexedDB.deleteDatabase(name);
    },

    async stored() {
        const root = await navigator.storage?.getDirectory?.(), names = [];
        const walk = async (folder, path) => {
            for await (const [name, handle] of folder.entries())
                if (handle.kind === 'directory') await walk(handle, `${path}${name}/`);
                else names.push([path + name, (await handle.getFile()).size]);
        };
        if (root) await walk(root, '');
        return { files: names, caches: await globalThis.caches?.keys() ?? [] };
    },
};
