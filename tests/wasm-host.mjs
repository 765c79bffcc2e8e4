// wasm-host.mjs - the smallest host of the modules of `make wasm` under node. A worker that starts with
// this file is a thread of a module.
import { readFileSync } from 'node:fs';
import { Worker, workerData } from 'node:worker_threads';
import { access, imports } from './wasm-core.mjs';

export { now, open } from './wasm-core.mjs';

if (workerData?.dibitThread) {
    const { module, memory, stack } = workerData.dibitThread;
    const x = (await WebAssembly.instantiate(module, imports(memory))).exports;
    x.__stack_pointer.value = stack;
    x.dibit_thread_main();
}

// {x: exports, memory, workers, end()}; threads besides the caller's own are started and may be on
// their way. `file`: a path or the module's bytes; maximum: pages of a shared memory.
export async function start(file, nThreads = 1, write, maximum = 16384) {
    const module = await WebAssembly.compile(typeof file === 'string' ? readFileSync(file) : file);
    const shared = WebAssembly.Module.imports(module).some(i => i.kind === 'memory');
    const own = shared && new WebAssembly.Memory({ initial: 64, maximum, shared: true });
    const m = { workers: [] };
    m.x = (await WebAssembly.instantiate(module, imports(own, (p, n) => write(m, p, n)))).exports;
    m.memory = own || m.x.memory;
    for (let i = 1; i < nThreads; i++) {
        const stack = m.x.dibit_thread_stack();
        if (!stack) throw new Error('no memory for a thread');
        const dibitThread = { module, memory: m.memory, stack };
        m.workers.push(new Worker(new URL(import.meta.url), { workerData: { dibitThread } }));
    }
    m.end = () => Promise.all(m.workers.map(w => w.terminate()));
    return { ...m, ...access(m) };
}
