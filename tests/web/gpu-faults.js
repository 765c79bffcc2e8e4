// gpu-faults.js - makes WebGPU in this worker fail on request, by the worker's url:
//   lose=NAME:N[:TIMES]  the device is gone at the N-th call of NAME, of the first TIMES devices (1)
//   replace=A&with=B     A in every kernel becomes B
//   full=N               the N-th buffer finds no memory
//   adapters=N           after N adapters there is none any more
const asked = new URLSearchParams(self.location.search);
const [name, nth, times] = (asked.get('lose') ?? '').split(':');
const [A, B] = [asked.get('replace'), asked.get('with')];
let calls = 0, losses = 0, buffers = 0, adapters = 0;
const devices = []; // of which one is destroyed, the others are left

function before(prototype, call, work) {
    const original = prototype?.[call];
    if (original) prototype[call] = function (...args) {
        work(this, args);
        return original.apply(this, args);
    };
}

const holder = { submit: 'GPUQueue', writeBuffer: 'GPUQueue', mapAsync: 'GPUBuffer', getMappedRange: 'GPUBuffer' }[name] ?? 'GPUDevice';
before(self[holder]?.prototype, name, () => {
    if (losses < Number(times ?? 1) && ++calls === Number(nth)) {
        calls = 0;
        losses++;
        devices.at(-1).destroy();
    }
});
const { requestDevice } = self.GPUAdapter?.prototype ?? {};
if (requestDevice) GPUAdapter.prototype.requestDevice = async function (...args) {
    const device = await requestDevice.apply(this, args);
    devices.push(device);
    return device;
};
const { requestAdapter } = self.GPU?.prototype ?? {};
if (requestAdapter) GPU.prototype.requestAdapter = function (...args) {
    return asked.has('adapters') && adapters++ >= Number(asked.get('adapters')) ? Promise.resolve(null) : requestAdapter.apply(this, args);
};
before(self.GPUDevice?.prototype, 'createShaderModule', (_, [d]) => {
    if (A) d.code = d.code.replaceAll(A, B);
});
const { popErrorScope } = self.GPUDevice?.prototype ?? {};
if (popErrorScope && asked.has('full')) GPUDevice.prototype.popErrorScope = async function () {
    const error = await popErrorScope.call(this);
    return ++buffers === Number(asked.get('full')) ? { message: 'no memory, says the test' } : error;
};
