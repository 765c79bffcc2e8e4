// gpu-ops.js - a worker that runs tests/gpu.c on the browser's GPU. Its C code waits for results, which nothing in a
// browser may that is also to hear of them, so the module runs in a second worker (this file again, with ?run) that
// sleeps in Atomics.wait() while the first one does each of its calls of web/gpu.c.
import './gpu-faults.js';
import { Gpu } from '/dist/gpu.js';

const text = (bytes, p) => new TextDecoder().decode(bytes.slice(p, bytes.indexOf(0, p)));

/** The module's memory, as gpu.js wants to see it; its buffer is shared, and grows. */
const view = memory => ({
    memory,
    get bytes() { return new Uint8Array(memory.buffer); },
    get view() { return new DataView(memory.buffer); },
    u32(p) { return this.view.getUint32(p, true); },
    text(p) { return text(this.bytes, p); },
});

/** The calls of the module, one by one; `control` is 1 when one is done, `result` what it gave. */
function serve(gpu, runner, memory, control, result) {
    const whole = view(memory);
    let seen = whole;
    const calls = gpu.imports(() => seen);
    // neither encodeInto() nor writeBuffer() takes shared memory everywhere
    const special = {
        text: (which, p, cap) => {
            const bytes = new Uint8Array(cap);
            seen = { bytes };
            calls.text(which, 0, cap);
            whole.bytes.set(bytes, p);
        },
        write: (id, at, p, n) => {
            seen = { memory: { buffer: whole.bytes.slice(p, p + n).buffer } };
            calls.write(id, at, 0, n);
        },
    };
    return new Promise((resolve, reject) => {
        runner.onerror = e => reject(new Error(e.message));
        runner.onmessage = async ({ data }) => {
            if (!data.call) return data.error ? reject(new Error(data.error)) : resolve(data);
            seen = whole;
            try {
                if (data.call === 'run') await gpu.settled();
                if (data.call === 'read_ready') await gpu.result();
                result[0] = Number((special[data.call] ?? calls[data.call])(...data.args) ?? 0);
            } catch (e) {
                gpu.lose(e.message);
            }
            Atomics.store(control, 0, 1);
            Atomics.notify(control, 0);
        };
    });
}

/** floor: on what every device has; all: every case, which takes Chromium ten minutes. */
async function host({ wasm, floor, all }) {
    const gpu = await Gpu.open({ software: true, floor });
    const memory = new WebAssembly.Memory({ initial: 64, maximum: 16384, shared: true });
    const shared = new SharedArrayBuffer(16), control = new Int32Array(shared, 0, 1), result = new Float64Array(shared, 8, 1);
    const runner = new Worker('/tests/gpu-ops.js?run', { type: 'module' });
    const done = serve(gpu, runner, memory, control, result);
    runner.postMessage({ module: await WebAssembly.compileStreaming(fetch(wasm)), memory, shared, words: `${floor ? 'floor' : 'special'} ${all ? 'all' : 'few'}\0` });
    const { lines, code } = await done.finally(() => runner.terminate());
    gpu.end();
    return { lines, code, info: gpu.info };
}

async function run({ module, memory, shared, words }) {
    const control = new Int32Array(shared, 0, 1), result = new Float64Array(shared, 8, 1), lines = [];
    const bytes = () => new Uint8Array(memory.buffer);
    const gpu = Object.fromEntries(WebAssembly.Module.imports(module).filter(i => i.module === 'gpu').map(({ name }) => [name, (...args) => {
        Atomics.store(control, 0, 0);
        postMessage({ call: name, args });
        Atomics.wait(control, 0, 0);
        return result[0];
    }]));
    const write = (p, n) => { lines.push(new TextDecoder().decode(bytes().slice(p, p + n)).trimEnd()); };
    try {
        const { exports } = await WebAssembly.instantiate(module, { gpu, env: { memory }, dibit: { now: () => performance.now(), write } });
        const line = exports.malloc(words.length);
        bytes().set(new TextEncoder().encode(words), line);
        postMessage({ code: exports.run(line), lines });
    } catch (e) {
        postMessage({ error: [...lines.slice(-4), e.message].join('; ') });
    }
}

self.onmessage = async ({ data }) => {
    if (self.location.search === '?run') return run(data);
    postMessage(await host(data).catch(e => ({ error: e.message })));
};
