// thread.js - a worker that lends its thread to the engine: it gets the module, the memory that all
// share and a stack, and never comes back from dibit_thread_main().
import { imports } from './wasm.js';

self.onmessage = async ({ data: { module, memory, stack } }) => {
    const { exports: x } = await WebAssembly.instantiate(module, imports({ memory }, true));
    x.__stack_pointer.value = stack;
    self.postMessage('ready');
    x.dibit_thread_main();
};
