// detect.js - what this browser and device can do: probes, not tables, in a page or in a worker. The
// names are those of DeviceInfo in src/plan.h, where the user agent is read and everything is judged;
// what cannot be known here is left out. Nothing is allocated to see how much memory there is, since
// a phone ends a page that tries.

const H = [0, 97, 115, 109, 1, 0, 0, 0];
const V128 = [65, 0, 253, 15]; // i32.const 0; i8x16.splat
// The smallest modules that need a feature: WebAssembly.validate() says whether it is there.
const MODULES = {
    wasm_simd: [...H, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 8, 1, 6, 0, ...V128, 11],
    wasm_relaxed_dot: [...H, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 19, 1, 17, 0, ...V128, ...V128, ...V128, 253, 147, 2, 11],
    wasm_relaxed_madd: [...H, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 19, 1, 17, 0, ...V128, ...V128, ...V128, 253, 133, 2, 11],
    wasm_threads: [...H, 1, 4, 1, 96, 0, 0, 3, 2, 1, 0, 5, 4, 1, 3, 1, 1, 10, 11, 1, 9, 0, 65, 0, 254, 16, 2, 0, 26, 11],
    wasm_memory64: [...H, 5, 3, 1, 4, 1],
    wasm_bulk: [...H, 1, 4, 1, 96, 0, 0, 3, 2, 1, 0, 5, 3, 1, 0, 1, 10, 14, 1, 12, 0, 65, 0, 65, 0, 65, 0, 252, 10, 0, 0, 11],
};
const TEXTS = { user_agent: 1023, gpu_vendor: 63, gpu_architecture: 63, gpu_description: 127 }; // bytes
const MAX_CORES = 64;

/** What WebAssembly has here, by validating small modules. */
export function wasmFeatures() {
    const found = {};
    if (typeof WebAssembly !== 'object') return { wasm_simd: false };
    for (const [name, bytes] of Object.entries(MODULES)) {
        try {
            found[name] = WebAssembly.validate(new Uint8Array(bytes));
        } catch {
            found[name] = false;
        }
    }
    found.jspi = typeof WebAssembly.Suspending === 'function';
    found.isolated = globalThis.crossOriginIsolated === true;
    found.shared_memory = typeof SharedArrayBuffer === 'function';
    return found;
}

/** The promise's value, or undefined after a while or when it fails: no probe holds the others up. */
function within(ms, promise) {
    let timer;
    const late = new Promise(resolve => { timer = setTimeout(resolve, ms); });
    return Promise.race([promise.catch(() => undefined), late]).finally(() => clearTimeout(timer));
}

const number = n => Number.isFinite(n) ? n : undefined;
const whole = n => number(n) === undefined ? undefined : Math.round(n);

async function gpuFeatures(nav) {
    if (!nav.gpu?.requestAdapter) return { webgpu: false };
    const adapter = await nav.gpu.requestAdapter({ powerPreference: 'high-performance' });
    if (!adapter) return { webgpu: false };
    const info = adapter.info ?? await adapter.requestAdapterInfo?.() ?? {}, l = adapter.limits ?? {};
    return {
        webgpu: true,
        gpu_fallback: (info.isFallbackAdapter ?? adapter.isFallbackAdapter) === true,
        gpu_vendor: info.vendor, gpu_architecture: info.architecture, gpu_description: info.description,
        gpu_f16: adapter.features.has('shader-f16'),
        gpu_subgroups: adapter.features.has('subgroups'),
        gpu_timestamps: adapter.features.has('timestamp-query'),
        gpu_packed_dot: nav.gpu.wgslLanguageFeatures?.has('packed_4x8_integer_dot_product') === true,
        gpu_max_buffer: whole(l.maxBufferSize),
        gpu_max_binding: whole(l.maxStorageBufferBindingSize),
        gpu_workgroup_storage: whole(l.maxComputeWorkgroupStorageSize),
        gpu_invocations: whole(l.maxComputeInvocationsPerWorkgroup),
        gpu_storage_buffers: whole(l.maxStorageBuffersPerShaderStage),
    };
}

async function batteryState(nav) {
    const battery = await nav.getBattery?.();
    return battery && { battery_level: number(battery.level), battery_charging: battery.charging };
}

// The folder is asked for, since private windows have the call and refuse it.
async function storageState(nav) {
    const found = { opfs: false };
    if (nav.storage?.getDirectory) found.opfs = await nav.storage.getDirectory().then(() => true, () => false);
    const { quota, usage } = await nav.storage?.estimate?.() ?? {};
    if (number(quota) !== undefined) found.storage_quota_mb = Math.floor(quota / 2 ** 20);
    if (number(usage) !== undefined) found.storage_used_mb = Math.floor(usage / 2 ** 20);
    return found;
}

/** A phone or tablet, where the browser says so itself; else the user agent and touch points tell. */
function isMobile(nav) {
    const said = nav.userAgentData?.mobile;
    return said === undefined ? undefined : said || /Android/.test(nav.userAgent ?? '');
}

function plainFacts(nav) {
    const { screen, devicePixelRatio } = globalThis, memory = number(nav.deviceMemory);
    return {
        user_agent: nav.userAgent,
        mobile: isMobile(nav),
        touch_points: whole(nav.maxTouchPoints),
        memory_mb: memory && Math.max(1, Math.round(memory * 1024)),
        cores: nav.hardwareConcurrency >= 1 ? Math.min(nav.hardwareConcurrency, MAX_CORES) : undefined,
        screen_width: whole(screen?.width),
        screen_height: whole(screen?.height),
        pixel_ratio: number(devicePixelRatio),
    };
}

/**
 * Everything that can be found out, as a plain object; what is not known is not there. Resolves within
 * about `patience_ms`, whatever hangs, and never rejects.
 */
export async function detect({ patience_ms = 3000 } = {}) {
    const nav = globalThis.navigator ?? {};
    const slow = await Promise.all([gpuFeatures(nav), batteryState(nav), storageState(nav)]
        .map(p => within(patience_ms, p)));
    const all = Object.assign({}, plainFacts(nav), wasmFeatures(), ...slow);
    return Object.fromEntries(Object.entries(all).filter(([, v]) => v !== undefined && v !== null && v !== ''));
}

// At most n bytes of UTF-8, on one line.
function clip(text, n) {
    const line = String(text).replace(/[\x00-\x1f\x7f]+/g, ' ').trim();
    const bytes = new TextEncoder().encode(line);
    if (bytes.length <= n) return line;
    return new TextDecoder().decode(bytes.subarray(0, n)).replace(/\ufffd+$/, '');
}

/** The object as lines "key=value", which the modules' dibit_plan_text() takes. */
export function deviceText(device) {
    return Object.entries(device).map(([k, v]) => `${k}=${k in TEXTS ? clip(v, TEXTS[k]) : v}\n`).join('');
}
