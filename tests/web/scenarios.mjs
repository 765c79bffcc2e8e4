// scenarios.mjs - what is asked of every browser, in order. A scenario opens its own pages, throws where something
// is wrong, and may say which feature of the compatibility matrix it stands for and which level was reached.
import assert from 'node:assert/strict';

const same = (got, want, what) => assert.deepEqual(got, want, `${what}: other tokens than the native program`);
const sent = (server, path = '/models/') => server.log.filter(e => e.path.startsWith(path)).reduce((n, e) => n + e.sent, 0);
const requests = (server, path = '/models/') => server.log.filter(e => e.path.startsWith(path));
const median = list => [...list].sort((a, b) => a - b)[list.length >> 1];
const mb = n => `${(n / 1e6).toFixed(1)} MB`;
const SIZE = 16668544;
const SMALL = { n_ctx: 512, store: 'memory' };

/** Nested objects with the innermost names alone. */
const flat = o => Object.fromEntries(Object.entries(o).flatMap(([k, v]) =>
    v && typeof v === 'object' && !Array.isArray(v) ? Object.entries(flat(v)) : [[k, v]]));

/** An error of one of these types, whose message is a sentence. */
function refused(outcome, types, what) {
    assert.ok(outcome.error, `${what}: no error`);
    assert.ok(types.includes(outcome.error.type), `${what}: ${outcome.error.type} (${outcome.error.message})`);
    assert.equal(outcome.error.name, 'DibitError');
    assert.ok(outcome.error.message.length > 10, `${what}: the message says nothing`);
    return outcome.error;
}

export const SCENARIOS = [
    {
        name: 'detection', feature: 'detection',
        async run({ open, isolated, plain, browser }) {
            const page = await open(isolated), found = await page.call('detect');
            assert.ok(found.simd, 'no SIMD');
            assert.ok(found.isolated, 'not isolated in spite of COOP/COEP');
            const other = await (await open(plain)).call('detect');
            assert.equal(other.isolated, false);
            browser.found = found;
            const c = found.capabilities;
            assert.ok(c, 'capabilities() gave nothing');
            for (const [ours, its] of [['simd', 'wasm_simd'], ['relaxed_dot', 'wasm_relaxed_dot'], ['isolated', 'isolated'], ['opfs', 'opfs']])
                assert.equal(flat(c)[its], found[ours], `capabilities() says ${its} ${flat(c)[its]}`);
            return { text: `relaxed dot ${found.relaxed_dot}, OPFS ${found.opfs}, WebGPU ${found.webgpu}`, level: 'Full' };
        },
    },
    {
        name: 'WebGPU adapter', feature: 'webgpu',
        async run({ browser }) {
            const state = browser.found?.webgpu;
            assert.ok(state, 'detection did not run');
            if (state === 'adapter') return { text: state, level: 'Partial', source: 'detected', note: 'an adapter is there' };
            return { text: state, level: 'No', source: 'detected', note: state === 'absent' ? 'the browser has no WebGPU here' : 'the browser has WebGPU but no adapter on this machine' };
        },
    },
    {
        name: 'one thread, f16 cache', feature: 'generate',
        async run({ open, isolated, native, model }) {
            const page = await open(isolated);
            const r = await page.call('generate', { model: model(isolated), n_threads: 1, cache_type_k: 'f16', cache_type_v: 'f16', store: 'memory' });
            same(r.ids, native.f16, 'f16');
            assert.equal(r.path.threads, 1);
            assert.equal(r.finish_reason, 'length');
            assert.ok(r.ordered && r.last[0] === r.last[1], 'progress does not end at the whole');
            const relaxed = /relaxed/.test(r.path.module);
            return { text: `${r.ids.length} tokens as native, ${r.path.module} (${r.path.isa})`,
                level: relaxed ? 'Full' : 'Enhanced', note: relaxed ? 'relaxed SIMD' : 'SIMD, without the relaxed byte dot' };
        },
    },
    {
        name: 'every cache type', feature: 'generate',
        async run({ open, isolated, native, model }) {
            const page = await open(isolated);
            for (const cache of ['q8', 'q4', 'k3', 'k2']) {
                const r = await page.call('generate', { model: model(isolated), n_threads: 1, cache_type_k: cache, cache_type_v: cache, store: 'memory' });
                same(r.ids, native[cache], cache);
            }
            return { text: 'q8, q4, k3, k2 as native', level: 'Full' };
        },
    },
    {
        name: 'two threads', feature: 'threads',
        async run({ open, isolated, native, model, browser, skip }) {
            const page = await open(isolated);
            if (!(await page.call('detect')).shared_memory) skip('no memory shared between threads');
            const r = await page.call('generate', { model: model(isolated), n_threads: 2, cache_type_k: 'f16', cache_type_v: 'f16', store: 'memory' });
            same(r.ids, native.f16, 'two threads');
            assert.equal(r.path.threads, 2, `${r.path.threads} threads were used`);
            const behind = browser.name === 'webkit';
            return { text: `${r.ids.length} tokens as native, ${r.path.module}`, level: behind ? 'Partial' : 'Full',
                note: behind ? 'with JSC_useSharedArrayBuffer=1 in the environment; else one thread' : 'needs COOP and COEP' };
        },
    },
    {
        name: 'without COOP and COEP', feature: 'plain-host',
        async run({ open, plain, native, model }) {
            const page = await open(plain);
            const r = await page.call('generate', { model: model(plain), n_threads: 2, cache_type_k: 'f16', cache_type_v: 'f16', store: 'memory' });
            same(r.ids, native.f16, 'plain host');
            assert.equal(r.path.threads, 1);
            assert.ok(!/threads/.test(r.path.module));
            return { text: `${r.path.module}, one thread`, level: 'Full', note: 'one thread' };
        },
    },
    {
        name: 'strict CSP', feature: 'csp',
        async run({ open, isolated, plain, model }) {
            // both servers send it with every answer: what remains is to see that nothing was blocked
            for (const server of [isolated, plain]) {
                const page = await open(server);
                await page.call('generate', { model: model(server), n: 4, ...SMALL });
                const blocked = page.errors.filter(e => /Content.Security|CSP/i.test(e));
                assert.deepEqual(blocked, []);
            }
            return { level: 'Full', note: "script-src 'self' 'wasm-unsafe-eval'" };
        },
    },
    {
        name: 'chat', feature: 'generate',
        async run({ open, isolated, model }) {
            const page = await open(isolated);
            const r = await page.call('chat', { options: { model: model(isolated), ...SMALL }, text: 'Hello, who are you?' });
            assert.equal(r.streamed, r.whole);
            assert.ok(r.whole.length > 0);
            assert.equal(r.reasons.length, 1);
            assert.deepEqual(r.objects, ['chat.completion.chunk']);
            assert.equal(r.usage.total_tokens, r.usage.prompt_tokens + r.usage.completion_tokens);
            return { text: JSON.stringify(r.whole.slice(0, 40)), level: 'Full' };
        },
    },
    {
        name: 'clone shares and separates', feature: 'generate',
        async run({ open, isolated, model }) {
            const r = await (await open(isolated)).call('clone', { options: { model: model(isolated), ...SMALL } });
            assert.ok(r.same);
            return { level: 'Full' };
        },
    },
    {
        name: 'a File and a ReadableStream', feature: 'load',
        async run({ open, isolated, native, model }) {
            const page = await open(isolated), url = model(isolated);
            same((await page.call('blob', { url, ...SMALL, cache_type_k: 'f16', cache_type_v: 'f16' })).ids, native.f16.slice(0, 24), 'File');
            same((await page.call('stream', { url, ...SMALL, cache_type_k: 'f16', cache_type_v: 'f16' })).ids, native.f16.slice(0, 24), 'stream');
            return { level: 'Full' };
        },
    },
    {
        name: 'abort', feature: 'abort',
        async run({ open, isolated, native, model }) {
            const r = await (await open(isolated)).call('abort', { options: { model: model(isolated), n_ctx: 4096, cache_type_k: 'f16', cache_type_v: 'f16', store: 'memory' }, rounds: 7 });
            assert.deepEqual(r.types, ['aborted']);
            same(r.after, native.f16.slice(0, 24), 'after the aborts');
            for (const [name, list] of Object.entries({ prefill: r.prefill, decode: r.decode, loading: r.loading }))
                assert.ok(median(list) <= 100, `${name}: ${median(list).toFixed(0)} ms`);
            return { text: `medians ${['prefill', 'decode', 'loading'].map(k => `${k} ${median(r[k]).toFixed(1)} ms`).join(', ')}`, level: 'Full' };
        },
    },
    {
        name: 'the page stays awake', feature: 'abort',
        async run({ open, isolated, model }) {
            const page = await open(isolated);
            let r = { longest: Infinity };
            // other work on the machine stops a page too: the best of three
            for (let i = 0; i < 3 && r.longest > 250; i++)
                r = await page.call('freeze', { options: { model: model(isolated), n_threads: 1, ...SMALL } });
            assert.ok(r.turns > 0 && r.longest <= 1000, `the page stood still for ${r.longest.toFixed(0)} ms`);
            return { text: `${r.turns} messages to itself, longest gap ${r.longest.toFixed(0)} ms`, level: r.longest <= 250 ? 'Full' : 'Partial' };
        },
    },
    {
        name: 'a model that is too large', feature: 'refusal',
        async run({ open, isolated, model }) {
            const page = await open(isolated), before = sent(isolated);
            isolated.rule('/models/', { slow: 10e6 }); // else a browser has all of it before anybody can say no
            const outcome = await page.call('attempt', ['generate', { model: model(isolated), memory_budget: 10e6, store: 'memory' }]);
            const error = refused(outcome, ['out_of_memory'], 'budget of 10 MB');
            const got = sent(isolated) - before;
            assert.ok(got < SIZE / 4, `${mb(got)} were downloaded before the refusal`);
            return { text: `${mb(got)} read before: ${error.message}`, level: 'Full' };
        },
    },
    {
        name: 'cache and reload', feature: 'cache',
        async run({ open, isolated, native, model, browser }) {
            const options = { model: model(isolated), n: 24, n_ctx: 512, cache_type_k: 'f16', cache_type_v: 'f16' };
            let page = await open(isolated);
            await page.call('forget');
            assert.equal(await page.call('available', options), 'downloadable');
            same((await page.call('generate', options)).ids, native.f16.slice(0, 24), 'first load');
            const stored = await page.call('stored'), before = sent(isolated);
            await page.close();
            page = await open(isolated);
            const again = await page.call('generate', options);
            same(again.ids, native.f16.slice(0, 24), 'from the cache');
            assert.equal(await page.call('available', options), 'available');
            const got = sent(isolated) - before;
            assert.ok(got < SIZE / 100, `${mb(got)} were downloaded again`);
            const opfs = stored.files.some(([, size]) => size > 1e5);
            if (browser.name !== 'webkit') assert.ok(opfs, 'not in OPFS');
            return { text: opfs ? 'OPFS' : 'Cache API', level: opfs ? 'Full' : 'Enhanced', note: opfs ? 'OPFS' : 'Cache API: no OPFS here' };
        },
    },
    {
        name: 'offline reload', feature: 'offline',
        async run({ open, isolated, native, model }) {
            const options = { model: model(isolated), n: 24, n_ctx: 512, cache_type_k: 'f16', cache_type_v: 'f16' };
            await (await open(isolated)).call('generate', options);
            isolated.rule('/models/', { drop: true });
            const page = await open(isolated);
            same((await page.call('generate', options)).ids, native.f16.slice(0, 24), 'offline');
            const other = await page.call('attempt', ['generate', { ...options, model: `${options.model}?other` }]);
            refused(other, ['download'], 'offline, not cached');
            return { level: 'Full' };
        },
    },
    {
        name: 'broken download goes on by Range', feature: 'resume',
        async run({ open, isolated, native, model, skip }) {
            const options = { model: model(isolated), n: 24, n_ctx: 512, cache_type_k: 'f16', cache_type_v: 'f16' };
            let page = await open(isolated);
            await page.call('forget');
            const start = isolated.log.length;
            isolated.rule('/models/', { cut: 9e6 }, 1);
            let r = await page.call('attempt', ['generate', options]);
            if (r.error) {
                refused(r, ['download'], 'cut');
                await page.close();
                page = await open(isolated);
                r = await page.call('attempt', ['generate', options]);
            }
            assert.ok(r.value, r.error?.message);
            same(r.value.ids, native.f16.slice(0, 24), 'resumed');
            const log = isolated.log.slice(start).filter(e => e.path.startsWith('/models/'));
            const total = log.reduce((n, e) => n + e.sent, 0), from = log.map(e => e.range).filter(Boolean);
            const went = from.some(f => +f.replace(/bytes=(\d+).*/, '$1') > 1e6);
            if (!went && !(await page.call('stored')).files.length) skip('no place that keeps a part');
            assert.ok(went, `no request for the rest: ${from.join(' ')}`);
            assert.ok(total < 1.6 * SIZE, `${mb(total)} were sent for ${mb(SIZE)}`);
            return { text: `${log.length} requests, ${mb(total)} in all`, level: 'Full' };
        },
    },
    {
        name: 'the file changed between the parts', feature: 'resume',
        async run({ open, isolated, native, model }) {
            const options = { model: model(isolated), n: 24, n_ctx: 512, cache_type_k: 'f16', cache_type_v: 'f16' };
            const page = await open(isolated);
            await page.call('forget');
            isolated.rule('/models/', { cut: 9e6, etag: 'first' }, 1);
            isolated.rule('/models/', { etag: 'second' });
            let r = await page.call('attempt', ['generate', options]);
            if (r.error) {
                refused(r, ['download'], 'changed');
                r = await page.call('attempt', ['generate', options]);
            }
            assert.ok(r.value, r.error?.message);
            same(r.value.ids, native.f16.slice(0, 24), 'changed file');
            return { level: 'Full' };
        },
    },
    {
        name: 'several tabs download once', feature: 'tabs',
        async run({ open, isolated, native, model }) {
            const options = { model: model(isolated), n: 24, n_ctx: 512, cache_type_k: 'f16', cache_type_v: 'f16' };
            const pages = [await open(isolated)];
            await pages[0].call('forget');
            while (pages.length < 3) pages.push(await open(isolated));
            isolated.rule('/models/', { slow: 20e6 });
            const before = sent(isolated);
            for (const page of pages) await page.call('begin', ['generate', options]);
            for (const page of pages) {
                const r = await page.call('result');
                assert.ok(r.value, r.error?.message);
                same(r.value.ids, native.f16.slice(0, 24), 'a tab');
            }
            const got = sent(isolated) - before;
            assert.ok(got < 1.1 * SIZE, `${mb(got)} were sent to three tabs`);
            return { text: `${mb(got)} for three tabs`, level: 'Full' };
        },
    },
    {
        name: 'truncated, wrong and missing files', feature: 'recovery',
        async run({ open, isolated, model }) {
            const page = await open(isolated), url = model(isolated), base = { n: 4, ...SMALL };
            const fails = async (types, what, options) =>
                refused(await page.call('attempt', ['generate', { ...base, ...options }]), types, what);
            for (const n of [3, 100, 5000, 400000, 5000000, SIZE - 1])
                await fails(['format', 'download'], `ends at ${n}`, { model: `${url}?short=${n}` });
            refused(await page.call('attempt', ['blob', { url, cut: 5000000, ...SMALL }]), ['format'], 'cut File');
            await fails(['format'], 'a script', { model: `${isolated.url}/dist/index.js` });
            await fails(['format', 'download'], 'a page', { model: `${isolated.url}/demo/` });
            await fails(['download'], '404', { model: `${isolated.url}/models/none.gguf` });
            await fails(['download'], '500', { model: `${url}?status=500` });
            await fails(['download'], 'no network', { model: `${url}?drop=1` });
            await fails(['argument'], 'no model', {});
            await fails(['argument'], 'cache type', { model: url, cache_type_k: 'q5' });
            return { text: '14 ways', level: 'Full' };
        },
    },
    {
        name: 'a server without ranges, types or ETag', feature: 'load',
        async run({ open, isolated, native, model }) {
            const page = await open(isolated);
            const r = await page.call('generate', { model: `${model(isolated)}?norange=1&type=text/plain`, n: 24, n_ctx: 512, cache_type_k: 'f16', cache_type_v: 'f16', store: 'memory' });
            same(r.ids, native.f16.slice(0, 24), 'no ranges');
            return { level: 'Full' };
        },
    },
    {
        name: 'worker ended 50 times', feature: 'recovery',
        async run({ open, isolated, native, model }) {
            const page = await open(isolated);
            const r = await page.call('kill', { options: { model: model(isolated), n_ctx: 512, cache_type_k: 'f16', cache_type_v: 'f16' }, times: 50, seed: 7 });
            const wrong = Object.keys(r.outcomes).filter(o => !/^(internal|aborted|download|device_lost), |^finished/.test(o));
            assert.deepEqual(wrong, []);
            assert.equal(Object.values(r.outcomes).reduce((a, b) => a + b, 0), 50);
            same(r.after, native.f16.slice(0, 24), 'afterwards');
            return { text: JSON.stringify(r.outcomes), level: 'Full' };
        },
    },
    {
        name: 'quota at each chunk', feature: 'recovery',
        async run({ open, isolated, native, model }) {
            const page = await open(isolated);
            const outcomes = await page.call('quota', { options: { model: model(isolated), n_ctx: 512, cache_type_k: 'f16', cache_type_v: 'f16' }, fails: 20 });
            for (const { n, ids, error } of outcomes) {
                if (error) refused({ error }, ['quota'], `write ${n}`);
                else same(ids, native.f16.slice(0, 8), `write ${n}`);
            }
            const through = outcomes.filter(o => !o.error).length, met = outcomes.filter(o => o.writes >= o.n).length;
            assert.ok(met >= Math.ceil(SIZE / 2 ** 20), `only ${met} writes were made to fail`);
            return { text: `${met} writes failed, ${through} times it went on from memory`, level: 'Full' };
        },
    },
    {
        name: 'peak memory of a load', browsers: ['chromium'],
        async run({ open, isolated, model }) {
            const page = await open(isolated), said = [];
            for (const options of [{ n_ctx: 512, cache_type_k: 'f16', cache_type_v: 'f16' }, { n_ctx: 4096, cache_type_k: 'k2', cache_type_v: 'k2' }, { n_ctx: 4096, cache_type_k: 'f16', cache_type_v: 'f16' }]) {
                let seen;
                for (let tries = 0; tries < 4 && !(seen?.n > 3); tries++) {
                    await page.call('forget');
                    seen = await page.call('peak', { options: { model: `${model(isolated)}?slow=16000000`, n_threads: 1, ...options } });
                }
                const { heap, n, memory } = seen, most = memory.peak + heap, limit = SIZE + memory.kv + 16e6;
                assert.ok(n > 3, 'the heap was not looked at');
                assert.ok(most <= limit, `${mb(most)} (engine ${mb(memory.peak)}, JavaScript ${mb(heap)}), more than file + KV + 16 MB = ${mb(limit)}`);
                said.push(`${mb(most)} of ${mb(limit)}`);
            }
            return { text: said.join(', '), level: 'Full' };
        },
    },
    {
        name: '1,000 rounds leave memory flat', browsers: ['chromium'],
        async run({ open, isolated, model }) {
            const marks = await (await open(isolated)).call('rounds', { options: { model: model(isolated), n_ctx: 256, store: 'memory' }, rounds: 1000 });
            const [first, last] = [marks[1], marks.at(-1)];
            assert.equal(marks.length, 11);
            assert.equal(last.wasm, first.wasm, 'the module\'s memory grew');
            for (const key of Object.keys(first).filter(k => k !== 'peak')) assert.equal(last[key], first[key], key);
            return { text: `${mb(last.wasm)} after 100 rounds and after 1,000`, level: 'Full' };
        },
    },
];
