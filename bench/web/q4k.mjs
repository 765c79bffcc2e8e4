// q4k.mjs - writes a GGUF file's bf16 matrices as Q4_K, llama.cpp's own 4-bit type, and copies all else: for speed
// beside engines that read no type of ours. The codes come from minima and maxima of 32 weights alone, so its
// text is worse than that of a real Q4_K file; the bytes and the work are the same.
// usage: node q4k.mjs IN.gguf OUT.gguf (IN: dibit quantize --type bf16 --embedding-type q8)
import { readFileSync, writeFileSync } from 'node:fs';

const BF16 = 30, Q4_K = 12, BLOCK = 256, BYTES = 144;
const SIZES = { 0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8 }; // of metadata values

const input = readFileSync(process.argv[2]);
let at = 4;
const u32 = () => input.readUInt32LE((at += 4) - 4), u64 = () => Number(input.readBigUInt64LE((at += 8) - 8));
const string = () => { const n = u64(); return input.toString('utf8', at, at += n); };
function skip(type) {
    if (type === 8) string();
    else if (type === 9) for (let [inner, n] = [u32(), u64()]; n > 0; n--) skip(inner);
    else at += SIZES[type];
}

u32(); // version
const nTensors = u64(), nValues = u64();
let alignment = 32;
for (let i = 0; i < nValues; i++) {
    const key = string(), type = u32();
    if (key === 'general.alignment') alignment = input.readUInt32LE(at);
    skip(type);
}
const metaEnd = at, tensors = [];
for (let i = 0; i < nTensors; i++) {
    const name = string(), shape = Array.from({ length: u32() }, u64), type = u32(), offset = u64();
    tensors.push({ name, shape, type, offset, n: shape.reduce((a, b) => a * b, 1) });
}
const align = n => Math.ceil(n / alignment) * alignment, begin = align(at);
tensors.forEach((t, i) => { t.end = i + 1 < nTensors ? tensors[i + 1].offset : input.length - begin; });

const bits = new Float32Array(1), word = new Uint32Array(bits.buffer);
const fromBf16 = h => { word[0] = h << 16; return bits[0]; };
function half(x) { // for numbers that f16 has as normal ones; smaller ones become zero
    bits[0] = x;
    const e = (word[0] >>> 23 & 255) - 112;
    return e <= 0 ? 0 : (word[0] >>> 16 & 0x8000) | e << 10 | (word[0] >>> 13 & 0x3ff);
}
const fromHalf = h => (1 + (h & 0x3ff) / 1024) * 2 ** ((h >>> 10 & 31) - 15) * (h ? 1 : 0);

// Eight groups of 32: w = d * scale * code - dmin * min, scale and min in 6 bits, codes in 4.
function block(w, out) {
    const scales = [], mins = [];
    for (let g = 0; g < 8; g++) {
        const part = w.subarray(32 * g, 32 * g + 32), low = Math.min(0, ...part);
        scales.push((Math.max(...part) - low) / 15);
        mins.push(-low);
    }
    const d = half(Math.max(...scales) / 63), m = half(Math.max(...mins) / 63), df = fromHalf(d), mf = fromHalf(m);
    out.writeUInt16LE(d, 0);
    out.writeUInt16LE(m, 2);
    const six = (v, unit) => unit ? Math.min(63, Math.round(v / unit)) : 0;
    const s = scales.map(v => six(v, df)), n = mins.map(v => six(v, mf));
    for (let g = 0; g < 4; g++) {
        out[4 + g] = s[g] | (s[g + 4] >> 4) << 6;
        out[8 + g] = n[g] | (n[g + 4] >> 4) << 6;
        out[12 + g] = (s[g + 4] & 15) | (n[g + 4] & 15) << 4;
    }
    for (let i = 0; i < BLOCK; i++) {
        const g = i >> 5, unit = df * s[g];
        const code = unit ? Math.max(0, Math.min(15, Math.round((w[i] + mf * n[g]) / unit))) : 0;
        out[16 + 32 * (g >> 1) + (i & 31)] |= code << 4 * (g & 1);
    }
}

function encode(t) {
    const out = Buffer.alloc(t.n / BLOCK * BYTES), w = new Float32Array(BLOCK);
    for (let b = 0; b < t.n / BLOCK; b++) {
        for (let i = 0; i < BLOCK; i++) w[i] = fromBf16(input.readUInt16LE(begin + t.offset + 2 * (b * BLOCK + i)));
        block(w, out.subarray(b * BYTES, (b + 1) * BYTES));
    }
    return out;
}

const head = [], data = [];
let size = 0;
for (const t of tensors) {
    const made = t.type === BF16 && t.shape.length === 2 && t.shape[0] % BLOCK === 0;
    const bytes = made ? encode(t) : input.subarray(begin + t.offset, begin + t.end);
    const name = Buffer.from(t.name), entry = Buffer.alloc(8 + name.length + 4 + 8 * t.shape.length + 12);
    let p = entry.writeBigUInt64LE(BigInt(name.length), 0);
    p += name.copy(entry, p);
    p = entry.writeUInt32LE(t.shape.length, p);
    for (const n of t.shape) p = entry.writeBigUInt64LE(BigInt(n), p);
    p = entry.writeUInt32LE(made ? Q4_K : t.type, p);
    entry.writeBigUInt64LE(BigInt(size), p);
    head.push(entry);
    data.push(bytes, Buffer.alloc(align(bytes.length) - bytes.length));
    size += align(bytes.length);
}
const front = Buffer.concat([input.subarray(0, metaEnd), ...head]);
writeFileSync(process.argv[3], Buffer.concat([front, Buffer.alloc(align(front.length) - front.length), ...data]));
