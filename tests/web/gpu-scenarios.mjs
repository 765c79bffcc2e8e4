// gpu-scenarios.mjs - the package on WebGPU, in browsers where it is switched on: SwiftShader in Chromium, lavapipe in
// Firefox. Most use a model of a million random weights, since SwiftShader takes a second for a token of the repository's.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { copyFileSync, existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { dots, kernels } from '../shaders-list.mjs';
import { writeTiny } from './tiny.mjs';

const LEVEL = { level: 'Enhanced', note: 'switched on for the test; software adapters (SwiftShader, lavapipe) alone' };
const F16 = { cache_type_k: 'f16', cache_type_v: 'f16', store: 'memory', n_threads: 1 };

/** The url of a tiny model of this type; made once. */
function tiny({ work, isolated, program }, type) {
    const [base, file] = ['f32', type].map(t => join(work, `tiny-${t}.gguf`));
    if (!existsSync(base)) writeTiny(base);
    if (!existsSync(file)) execFileSync(program, ['quantize', '-m', base, '-o', file, '--type', type], { stdio: 'ignore' });
    return `${isolated.url}/work/tiny-${type}.gguf`;
}

/** Runs on the GPU and in WebAssembly: both results. */
async function both(page, options) {
    const gpu = await page.call('gpu', { ...F16, ...options });
    const cpu = await page.call('gpu', { ...F16, ...options, fault: undefined, backend: 'wasm' });
    return { gpu, cpu };
}

function onGpu({ path, warnings }, what) {
    assert.equal(path.backend, 'webgpu', `${what}: ${JSON.stringify(warnings)}`);
    assert.ok(path.check.kld < 1e-3 && path.check.other <= 1, `${what}: ${JSON.stringify(path.check)}`);
}

/** Starts a timer of 5 ms in a thread that does nothing else; the function that it returns ends it and says how
 * long the machine kept it from running. */
function longestGap() {
    const thread = new Worker(`const { parentPort } = require('node:worker_threads');
        let last = performance.now(), gap = 0;
        const tick = () => { const now = performance.now(); gap = Math.max(gap, now - last); last = now; };
        const clock = setInterval(tick, 5);
        parentPort.once('message', () => { tick(); clearInterval(clock); parentPort.postMessage(gap); });`, { eval: true });
    return () => new Promise(resolve => {
        thread.once('message', resolve);
        thread.postMessage('end');
    });
}

export const GPU = [
    {
        // wgpu and Mesa are not asked by shaders.sh, and a text that they do not like may end the browser
        name: 'WebGPU: every kernel compiles', limit: 300, browsers: ['firefox'],
        async run(context) {
            const page = await context.open(context.isolated);
            let n = 0;
            for (const { name, texts, constants } of kernels) {
                const code = dots.native + texts.join('');
                const said = await page.call('gpuCompile', { code, constants }).catch(e => [`${name}: ${e.message}`]);
                assert.deepEqual(said, [], name);
                n += constants.length;
            }
            return { text: `${n} variants of ${kernels.length} kernels` };
        },
    },
    {
        name: 'WebGPU: operations', feature: 'webgpu', limit: 900, browsers: ['chromium', 'firefox'],
        async run(context) {
            copyFileSync(join(dirname(context.program), 'web', 'gpu-test.wasm'), join(context.work, 'gpu-test.wasm'));
            const page = await context.open(context.isolated), wasm = `${context.isolated.url}/work/gpu-test.wasm`, seen = [];
            const wrong = page.call('gpuOps', { wasm, fault: 'replace=divide(127.0&with=divide(126.0' });
            await assert.rejects(wrong, /gpu\.c:\d+/, 'a wrong kernel passes');
            for (const floor of [false, true]) {
                const { code, lines } = await page.call('gpuOps', { wasm, floor, all: process.env.DIBIT_GPU_POINTS === '1' });
                assert.equal(code, 0, lines.join('; '));
                assert.ok(lines.length > 8, `only ${lines.length} lines: ${lines}`);
                seen.push(lines[0]);
            }
            return { ...LEVEL, text: seen.join('; ') };
        },
    },
    {
        name: 'WebGPU: every type and cache', feature: 'webgpu', limit: 500, browsers: ['chromium', 'firefox'],
        async run(context) {
            const page = await context.open(context.isolated), seen = [];
            const cases = [['f32', 'f16'], ['q8', 'q8'], ['q4', 'f16'], ['s2', 'k2'], ['s3', 'k3'], ['t2', 'q8'], ['t3', 'f16']];
            for (const [type, cache] of cases) {
                const model = tiny(context, type), options = { model, n: 12, n_ctx: 128, cache_type_k: cache, cache_type_v: cache };
                const { gpu, cpu } = await both(page, options);
                onGpu(gpu, `${type}, ${cache}`);
                assert.equal(gpu.path.isa, 'webgpu');
                assert.equal(cpu.path.backend, 'wasm');
                if (type === 'f32') assert.deepEqual(gpu.ids, cpu.ids);
                const same = gpu.ids.findIndex((id, i) => id !== cpu.ids[i]);
                seen.push(`${type}/${cache} ${gpu.path.check.kld.toExponential(0)}${same < 0 ? '' : ` (token ${same} another)`}`);
            }
            return { text: `KLD at load ${seen.join(', ')}`, ...LEVEL };
        },
    },
    {
        name: 'WebGPU: the repository\'s model', feature: 'webgpu', limit: 500, browsers: ['chromium', 'firefox'],
        async run({ open, isolated, native, model }) {
            const n = 64, page = await open(isolated), machine = longestGap();
            const r = await page.call('gpu', { ...F16, model: model(isolated), n, n_ctx: 128 }), here = await machine();
            onGpu(r, 'dibit-34m');
            assert.deepEqual(r.ids, native.f16.slice(0, n), 'other tokens than the native program');
            // what keeps this process from its timer, too, is not the page
            assert.ok(r.gap <= Math.max(50, 2 * here), `the page stood still for ${r.gap.toFixed(0)} ms, this process for ${here.toFixed(0)} ms`);
            assert.ok(r.tasks.every(ms => ms <= Math.max(50, 2 * here)), `tasks of ${r.tasks.join(', ')} ms`);
            const gaps = `longest gap of a 5 ms timer ${r.gap.toFixed(0)} ms in the page, ${here.toFixed(0)} ms outside it`;
            return { text: `${n} tokens as native, ${JSON.stringify(r.path.check)}, ${gaps}`, ...LEVEL };
        },
    },
    {
        name: 'WebGPU: the device is lost', limit: 900, browsers: ['chromium', 'firefox'],
        async run(context) {
            const page = await context.open(context.isolated), model = tiny(context, 'f32');
            // as many tokens that each point comes, also where the check at load has few positions
            const options = { ...F16, model, n: 40, n_ctx: 128 };
            const { ids } = await page.call('gpu', { ...options, backend: 'wasm' });
            const points = ['createBuffer:1', 'createBuffer:30', 'writeBuffer:1', 'writeBuffer:20', 'createComputePipelineAsync:1',
                'createComputePipelineAsync:9', 'createBindGroup:1', 'createBindGroup:30', 'submit:2', 'submit:5', 'submit:20', 'submit:33',
                'submit:34', 'submit:41', 'submit:50', 'mapAsync:3', 'mapAsync:33', 'mapAsync:40', 'getMappedRange:34', 'mapAsync:36:99',
                'createCommandEncoder:45'];
            const ends = { webgpu: 0, wasm: 0 };
            for (const lose of points) {
                const r = await page.call('gpu', { ...options, fault: `lose=${lose}` });
                assert.deepEqual(r.ids, ids, `lost at ${lose}: another text`);
                assert.ok(r.warnings.length, `lost at ${lose}: nobody was told`);
                ends[r.path.backend]++;
            }
            assert.ok(ends.webgpu >= 1 && ends.wasm >= 1, JSON.stringify(ends));
            const gone = await page.call('gpu', { ...options, fault: 'lose=submit:40&adapters=1' });
            assert.deepEqual([gone.ids, gone.path.backend], [ids, 'wasm'], 'no second adapter');
            return { text: `${points.length + 1} points, the same text; ${ends.webgpu} went on with another device, the others in WebAssembly` };
        },
    },
    {
        name: 'WebGPU: kernels and memory that fail', limit: 400, browsers: ['chromium', 'firefox'],
        async run(context) {
            const page = await context.open(context.isolated), model = tiny(context, 'q8'), options = { ...F16, model, n: 12, n_ctx: 128 };
            const { ids } = await page.call('gpu', { ...options, backend: 'wasm' });
            const variant = await page.call('gpu', { ...options, fault: 'replace=dot4I8Packed(&with=no_such_function(' });
            onGpu(variant, 'a variant that does not compile');
            assert.equal(variant.path.adapter.floor, true);
            assert.match(variant.warnings[0].message, /kernel/);
            const broken = await page.call('gpu', { ...options, fault: 'replace=workgroupBarrier()&with=no_such_function()' });
            assert.deepEqual([broken.ids, broken.path.backend], [ids, 'wasm'], 'a kernel that never compiles');
            const wrong = await page.call('gpu', { ...options, fault: 'replace=return dot4I8Packed(a,b);&with=return -dot4I8Packed(a,b);' });
            assert.deepEqual([wrong.ids, wrong.path.backend], [ids, 'wasm'], 'a kernel that computes something else');
            assert.match(wrong.warnings[0].message, /something else than the CPU/);
            const full = await page.call('gpu', { ...options, fault: 'full=20' });
            assert.deepEqual([full.ids, full.path.backend], [ids, 'wasm'], 'no memory');
            assert.match(full.warnings[0].message, /no GPU memory/);
            const cache = await page.call('gpu', { ...options, cache_type_k: 'q4', cache_type_v: 'q4' });
            assert.equal(cache.path.backend, 'wasm', 'a cache that the GPU has not');
            return { text: 'the variant alone is left; else WebAssembly, and it is said' };
        },
    },
    {
        name: 'WebGPU: auto, drawn tokens, abort, clone', limit: 400, browsers: ['chromium', 'firefox'],
        async run(context) {
            const page = await context.open(context.isolated), model = tiny(context, 'f32'), options = { ...F16, model, n: 12, n_ctx: 128 };
            const { ids } = await page.call('gpu', { ...options, backend: 'wasm' });
            const auto = await page.call('gpu', { ...options, backend: 'auto' });
            assert.deepEqual([auto.ids, auto.path.backend], [ids, 'wasm'], 'auto takes a software adapter');
            assert.match(auto.warnings[0].message, /software/);
            const drawn = { ...options, n: 24, sampling: { temperature: 0.8, top_k: 40, seed: 1 } }; // on a GPU 64 logits come back; no seed whose draw is close
            const here = await page.call('gpu', { ...drawn, backend: 'wasm' }), there = await page.call('gpu', drawn);
            onGpu(there, 'drawn tokens');
            assert.deepEqual(there.ids, here.ids, 'drawn tokens');
            assert.notDeepEqual(here.ids.slice(0, 12), ids, 'the likeliest were drawn');
            const r = await page.call('gpuAbort', { ...F16, model, n_ctx: 512 });
            assert.deepEqual(r.types, ['aborted']);
            const middle = [...r.ms].sort((a, b) => a - b)[r.ms.length >> 1];
            assert.ok(middle <= 100, `abort took ${middle.toFixed(0)} ms`);
            assert.deepEqual(r.after, r.before);
            assert.deepEqual(r.clones, [r.before, r.before], 'two sessions at once');
            assert.equal(r.path.backend, 'webgpu');
            return { text: `abort in ${middle.toFixed(1)} ms` };
        },
    },
];
