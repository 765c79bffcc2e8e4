// bad-worker.js - the worker of the package on a device whose first module is no good: by its url's query
// the self-test fails (?self_test), the n-th token traps (?trap=n), or memory cannot grow beyond n pages
// (?pages=n, of a module with threads).
const wanted = new URL(import.meta.url).searchParams, instantiate = WebAssembly.instantiate;
let modules = 0, tokens = 0;

WebAssembly.instantiate = async (module, imports) => {
    const instance = await instantiate(module, imports), { exports } = instance;
    if (!exports.dibit_next || modules++ > 0) return instance;
    return { exports: { ...exports,
        dibit_self_test: (...a) => (wanted.has('self_test') ? 1 : exports.dibit_self_test(...a)),
        dibit_next: (...a) => {
            if (++tokens === Number(wanted.get('trap'))) throw new WebAssembly.RuntimeError('unreachable');
            return exports.dibit_next(...a);
        } } };
};
if (wanted.has('pages')) {
    const { Memory } = WebAssembly;
    WebAssembly.Memory = function (o) { return new Memory({ ...o, maximum: Math.min(o.maximum, wanted.get('pages')) }); };
}
await import('../src/worker.js');
