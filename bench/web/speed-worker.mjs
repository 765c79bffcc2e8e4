// speed-worker.mjs - speed.mjs in a browser: this worker runs the engine, and others of the same file are
// its threads.
import { access, imports } from '../../tests/wasm-core.mjs';
import { measure } from './measure.mjs';

const bytes = async url => new Uint8Array(await (await fetch(url)).arrayBuffer());

async function start(name, nThreads) {
    const module = await WebAssembly.compile(await bytes(`/wasm/dibit-${name}.wasm`));
    const shared = WebAssembly.Module.imports(module).some(i => i.kind === 'memory');
    const memory = shared && new WebAssembly.Memory({ initial: 64, maximum: 4096, shared: true });
    const x = (await WebAssembly.instantiate(module, imports(memory))).exports;
    for (let i = 1; i < nThreads; i++) {
        const w = new Worker(import.meta.url, { type: 'module' });
        await new Promise(ready => { // a worker starts only while this one is idle
            w.onmessage = ready;
            w.postMessage({ module, memory, stack: x.dibit_thread_stack() });
        });
    }
    const m = { x, memory: memory || x.memory };
    return { ...m, ...access(m) };
}

onmessage = async ({ data }) => {
    if (data.module) {
        const x = (await WebAssembly.instantiate(data.module, imports(data.memory))).exports;
        x.__stack_pointer.value = data.stack;
        postMessage('ready');
        x.dibit_thread_main();
    }
    try {
        const dotModule = await bytes('/wasm/bench-dot.wasm');
        postMessage(await measure({ ...data, start, read: file => bytes(file), dotModule }));
    } catch (error) {
        postMessage({ error: String(error.stack) });
    }
};
