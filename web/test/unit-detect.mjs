// unit-detect.mjs - the probes, with browsers that have everything, nothing, or something broken.
// usage: node --test unit-detect.mjs (DIBIT_WASM: folder of the modules)
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { start } from '../../tests/wasm-host.mjs';
import { detect, deviceText, wasmFeatures } from '../src/detect.js';

const folder = process.env.DIBIT_WASM ?? 'build/web';
const m = await start(`${folder}/dibit-simd.wasm`);

/** With this navigator and these globals. */
async function as(navigator, globals, fn) {
    const all = { navigator, ...globals }, before = {};
    for (const [k, v] of Object.entries(all)) {
        before[k] = Object.getOwnPropertyDescriptor(globalThis, k);
        Object.defineProperty(globalThis, k, { value: v, configurable: true, writable: true });
    }
    try {
        return await fn();
    } finally {
        for (const k of Object.keys(all))
            if (before[k]) Object.defineProperty(globalThis, k, before[k]);
            else delete globalThis[k];
    }
}

/** The plan of the module for a device: throws where the text is not taken. */
function plan(device) {
    const text = new TextEncoder().encode(deviceText(device)), err = m.make('DibitError'), out = m.x.malloc(1 << 16);
    const p = m.put(text.length ? text : new Uint8Array(1)), none = m.put(new Uint8Array(8));
    const n = Number(m.x.dibit_plan_text(p, text.length, none, 0, 0, none, 0, out, 1 << 16, err));
    assert.ok(n > 0, m.text(err + m.at['DibitError.text']));
    return Object.fromEntries(m.text(out, n).trim().split('\n').map(l => l.split('\t')).map(([k, v, r]) => [k, [v, r]]));
}

const adapter = (more = {}) => ({
    info: { vendor: 'intel', architecture: 'gen-12lp', description: '' },
    features: new Set(['shader-f16', 'subgroups']),
    limits: { maxBufferSize: 2 ** 30, maxStorageBufferBindingSize: 2 ** 27 }, ...more,
});
const full = {
    userAgent: 'Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/151.0.0.0 Safari/537.36',
    userAgentData: { mobile: false }, deviceMemory: 8, hardwareConcurrency: 12, maxTouchPoints: 0,
    gpu: { requestAdapter: async () => adapter(), wgslLanguageFeatures: new Set(['packed_4x8_integer_dot_product']) },
    getBattery: async () => ({ level: 0.5, charging: false }),
    storage: { getDirectory: async () => ({}), estimate: async () => ({ quota: 10 * 2 ** 30, usage: 5e6 }) },
};

test('WebAssembly is probed as it is in node', () => {
    const f = wasmFeatures();
    assert.equal(f.wasm_simd, true);
    assert.equal(f.wasm_threads, true);
    assert.equal(f.wasm_bulk, true);
    assert.equal(typeof f.wasm_memory64, 'boolean');
});

test('a browser that has everything', async () => {
    const d = await as(full, { crossOriginIsolated: true, devicePixelRatio: 1.5, screen: { width: 1920, height: 1080 } }, () => detect());
    assert.equal(d.memory_mb, 8192);
    assert.equal(d.cores, 12);
    assert.equal(d.webgpu, true);
    assert.equal(d.gpu_vendor, 'intel');
    assert.equal(d.gpu_f16, true);
    assert.equal(d.gpu_packed_dot, true);
    assert.equal(d.gpu_timestamps, false);
    assert.equal(d.gpu_max_binding, 2 ** 27);
    assert.equal(d.battery_level, 0.5);
    assert.equal(d.opfs, true);
    assert.equal(d.storage_quota_mb, 10240);
    assert.equal(d.pixel_ratio, 1.5);
    assert.ok(!('gpu_description' in d));
    const p = plan(d);
    assert.equal(p.backend[0], 'webgpu');
    assert.equal(p.memory[1], 'deviceMemory');
});

test('a browser that has nothing: everything is left out or false, and the plan says why', async () => {
    const d = await as({ userAgent: 'x' }, { crossOriginIsolated: undefined }, () => detect());
    assert.equal(d.webgpu, false);
    assert.equal(d.isolated, false);
    assert.equal(d.opfs, false);
    for (const k of ['memory_mb', 'cores', 'mobile', 'battery_level', 'storage_quota_mb']) assert.ok(!(k in d), k);
    const p = plan(d);
    assert.equal(p.backend[0], 'wasm');
    assert.match(p.n_threads[1], /isolated/);
    assert.deepEqual(await as(undefined, { WebAssembly: undefined }, () => detect()), { wasm_simd: false, webgpu: false, opfs: false });
});

test('what hangs or throws costs only its own answer', async () => {
    const never = () => new Promise(() => {}), bad = async () => { throw new Error('no'); };
    const nav = { ...full, gpu: { requestAdapter: never }, getBattery: bad, storage: { getDirectory: bad, estimate: bad } };
    const begin = Date.now(), d = await as(nav, {}, () => detect({ patience_ms: 100 }));
    assert.ok(Date.now() - begin < 1000);
    assert.ok(!('webgpu' in d) && !('battery_level' in d));
    assert.equal(d.memory_mb, 8192);
    assert.match(plan(d).backend[1], /not probed/);
});

test('software adapters, phones, iPads that say they are Macs', async () => {
    const soft = { ...full, gpu: { requestAdapter: async () => adapter({ isFallbackAdapter: true }) } };
    assert.equal(plan(await as(soft, {}, () => detect())).backend[0], 'wasm');
    const ipad = { userAgent: 'Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.3 Safari/605.1.15', maxTouchPoints: 5 };
    assert.match(plan(await as(ipad, {}, () => detect())).memory[1], /phone or tablet/);
    assert.match(plan(await as({ ...ipad, maxTouchPoints: 0 }, {}, () => detect())).memory[1], /macOS/);
    const tablet = { ...full, userAgent: full.userAgent.replace('Windows NT 10.0; Win64; x64', 'Linux; Android 10; K') };
    assert.equal(plan(await as(tablet, {}, () => detect())).mobile[0], 'on');
});

test('texts of any kind go into one line of at most so many bytes', async () => {
    const text = deviceText({ user_agent: 'a\nb\0' + '€'.repeat(1000), gpu_vendor: '  ', cores: 3 });
    const lines = text.split('\n');
    assert.equal(lines.length, 4);
    assert.ok(new TextEncoder().encode(lines[0]).length <= 1023 + 'user_agent='.length);
    assert.match(lines[0], /^user_agent=a b €+$/);
    plan({ user_agent: '\ud800'.repeat(600), cores: 3 });
});
