// gpu_check.js - runs in the worker: whether the GPU computes this model as the CPU does, and how fast
// both are. The CPU is the same module without its backend, on the same image.
import { aborted, fail } from './errors.js';
import { Session } from './session.js';

const POSITIONS = 32, ROWS = 4; // of logits at a time
const SOFTWARE_MS = 3000; // after which a software adapter, which takes a second a token, is believed
const MAX_KLD = 1e-3, MAX_MARGIN = 1e-2; // nats; between the CPU's two best logits where one may be another
const TEXT = 'The city lies on both banks of the river; its history begins in the year 1143. ';
const PROBE_MS = 500, PROBE_TOKENS = 32;

/** Runs work(cpu, gpu, ids) with a session of each, and frees all of it again. */
async function withBoth(engine, work) {
    const w = engine.wasm, settings = { ...engine.settings, n_ctx: 4 * POSITIONS };
    const cpu = engine.openImages({ no_repack: 1 }), sessions = [];
    try {
        for (const ptr of [cpu, engine.ptr]) sessions.push(Session.create(w, ptr, settings));
        await w.gpu.settled();
        return await work(...sessions);
    } finally {
        for (const ptr of sessions) {
            w.setU32(w.out, ptr);
            w.x.dibit_session_free(w.out);
        }
        w.setU32(w.out, cpu);
        w.x.dibit_close(w.out);
    }
}

const until = (w, signal, call) => w.gpu.ask(() => w.ok(call()), () => { if (signal.aborted) throw aborted(signal); });

/** Ids to be computed: those of a text, and after its end or without a tokenizer any. */
function idsFor(engine) {
    const { n_vocab } = engine.info, ids = Int32Array.from({ length: POSITIONS }, (_, i) => 1 + (i * 7919 + 40) % (n_vocab - 1));
    try {
        const text = Session.tokens(engine, TEXT.repeat(2), 1, (p, n) => new Int32Array(engine.wasm.slice(p, 4 * n).buffer));
        ids.set(text.subarray(0, POSITIONS));
    } catch (e) {
        if (e.type !== 'format') throw e; // there is no tokenizer
    }
    return ids;
}

/** Sum of p log(p / q) of two rows of logits, and of both the largest. */
function rowDifference(p, q) {
    const best = x => x.reduce((b, v, i) => (v > x[b] ? i : b), 0), a = best(p), b = best(q);
    let sp = 0, sq = 0, d = 0;
    for (let i = 0; i < p.length; i++) {
        const e = Math.exp(p[i] - p[a]);
        sp += e;
        sq += Math.exp(q[i] - q[b]);
        d += e * (p[i] - q[i]);
    }
    return { kld: d / sp - p[a] + q[b] - Math.log(sp / sq), other: a !== b, margin: p[a] - p[b] };
}

/** Throws where the GPU's logits are not the CPU's; else says how near they are. */
export async function compare(engine, signal) {
    const w = engine.wasm, { n_vocab } = engine.info, ids = idsFor(engine), rows = [], begin = performance.now();
    const at = w.malloc(4 * POSITIONS), size = 4 * ROWS * n_vocab, out = [w.malloc(size), w.malloc(size)];
    w.bytes.set(new Uint8Array(ids.buffer), at);
    try {
        await withBoth(engine, async (...sessions) => {
            for (let i = 0; i < POSITIONS; i += ROWS) {
                for (const [k, ptr] of sessions.entries())
                    await until(w, signal, () => w.x.dibit_forward(ptr, at + 4 * i, ROWS, out[k], w.err));
                const [p, q] = out.map(o => new Float32Array(w.slice(o, size).buffer));
                if (w.gpu.info.software && performance.now() - begin > SOFTWARE_MS) i = POSITIONS;
                for (let r = 0; r < ROWS; r++)
                    rows.push(rowDifference(...[p, q].map(x => x.subarray(r * n_vocab, (r + 1) * n_vocab))));
            }
        });
    } finally {
        for (const p of [at, ...out]) w.x.free(p);
    }
    const kld = rows.reduce((n, r) => n + r.kld, 0) / rows.length, other = rows.filter(r => r.other);
    if (!(kld < MAX_KLD) || other.length > 1 || other.some(r => !(r.margin < MAX_MARGIN)))
        fail('unsupported', `the GPU computes something else than the CPU: of ${rows.length} positions KLD ${kld.toPrecision(3)}, ` +
            `${other.length} other tokens`);
    return { positions: rows.length, kld, other: other.length };
}

/** Milliseconds of a token. */
async function pace(w, signal, ptr) {
    const piece = w.struct('DibitPiece'), begin = performance.now();
    let n = 0, ms;
    do {
        if (!await until(w, signal, () => w.x.dibit_next(ptr, piece, w.err))) break;
        ms = performance.now() - begin;
    } while (++n < PROBE_TOKENS && ms < PROBE_MS);
    w.x.free(piece);
    return n > 1 ? ms / n : Infinity;
}

/**
 * Why the next best module is preferred to the GPU, or ''. Here the CPU is one thread without relaxed
 * SIMD; what the other module has more is estimated: 1.6 times for relaxed SIMD, 0.7 for each further
 * thread, near what docs/performance.md has of one machine.
 */
export function tooSlow(engine, next, signal) {
    const w = engine.wasm, gain = (next.needs.includes('wasm_relaxed') ? 1.6 : 1) * (1 + 0.7 * (next.threads - 1));
    return withBoth(engine, async (cpu, gpu) => {
        const ids = w.malloc(4), ms = [];
        w.setU32(ids, 1);
        for (const ptr of [cpu, gpu]) {
            await until(w, signal, () => w.x.dibit_sync(ptr, ids, 1, w.err));
            ms.push(await pace(w, signal, ptr));
        }
        w.x.free(ids);
        engine.path.probe = { gpu_ms: ms[1], cpu_ms: ms[0] / gain };
        return ms[1] < ms[0] / gain ? '' : `the GPU takes ${ms[1].toFixed(1)} ms a token, the CPU about ${(ms[0] / gain).toFixed(1)}`;
    });
}
