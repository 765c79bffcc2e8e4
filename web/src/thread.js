// thread.js - a worker that lends its thread to the engine: it gets the module, the memory that all
// share and a stack, and never comes back from dibit_thread_main().
import { imports } from './wasm.js';

self.onmessage = ({ data: { port } }) => {
    port.onmessage = ({ data }) => work(port, data);
};

async function work(port, { module, memory, stack }) {
    const { exports: x } = await WebAssembly.instantiate(module, imports({ memory }, true));
    x.__stack_pointer.value = stack;
    port.postMessage('ready');
    x.dibit_thread_main();
}
