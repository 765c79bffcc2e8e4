// gpu_engine.js - runs in the worker: how the engine opens its model on a GPU, and what takes over where
// that fails: the same GPU with what every one has, another device, at last the CPU. The model's image
// stays in the module's memory for that.
import { aborted, asDibitError, fail } from './errors.js';
import { compare, tooSlow } from './gpu_check.js';
import { Session } from './session.js';

const MAX_LOSSES = 3; // of the device, before the CPU takes over

export function backendOf(w) {
    w.ok(w.x.dibit_gpu_backend(w.out, w.err));
    return { backend: w.u32(w.out) };
}

/** With the GPU, where there is one that does what it should, else without. */
export async function openBest(engine) {
    while (engine.wasm.gpu) {
        try {
            await engine.openModel();
            return await check(engine);
        } catch (e) {
            if (e instanceof WebAssembly.RuntimeError) throw e;
            await leaveGpu(engine, asDibitError(e));
        }
    }
    await engine.openModel();
}

async function check(engine) {
    const { gpu } = engine.wasm, { signal } = engine.host;
    await gpu.settled();
    engine.path.adapter = gpu.info;
    if (engine.path.check) return; // of an earlier device
    engine.path.check = await compare(engine, signal);
    const why = engine.o.backend === 'auto' && await tooSlow(engine, engine.choices[1], signal);
    if (why) fail('unsupported', why, { slow: 1 });
    engine.features.result('webgpu', true);
    engine.host.features(engine.features.text);
}

/** What fails with all that the GPU offers is tried with what every GPU has; then the CPU is next. */
async function leaveGpu(engine, error) {
    const w = engine.wasm;
    if (engine.host.signal.aborted) throw aborted(engine.host.signal);
    engine.closeModel();
    if (error.type === 'unsupported' && w.gpu.type === 'unsupported' && !w.gpu.info.floor) {
        engine.host.warn({ type: 'unsupported', message: `${error.message}; going on without the GPU's special features` });
        return w.gpu.acquire({ floor: true });
    }
    engine.leave(error);
    w.gpu.end();
    await engine.start();
    engine.replan();
    for (const image of engine.image.images) {
        const ptr = engine.wasm.malloc(image.size);
        engine.wasm.bytes.set(w.bytes.subarray(image.ptr, image.ptr + image.size), ptr);
        image.ptr = ptr;
    }
}

/** The device is gone: another one, or the CPU, takes over with the model that is here and empty sessions. */
export async function newDevice(engine, error) {
    const { gpu } = engine.wasm, sessions = [...engine.sessions.values()];
    for (const session of sessions) session.free();
    try {
        if (++engine.losses > MAX_LOSSES) throw error;
        engine.closeModel();
        await gpu.acquire({ floor: gpu.info.floor });
        engine.host.warn({ type: 'device_lost', message: `${error.message}; the device was asked for anew` });
    } catch (e) {
        await leaveGpu(engine, asDibitError(e));
    }
    await openBest(engine);
    for (const session of sessions) session.take(Session.create(engine.wasm, engine.ptr, engine.settings));
}
