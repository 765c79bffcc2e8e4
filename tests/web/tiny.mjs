// tiny.mjs - a GGUF of 1.2 million random weights with a tokenizer of bytes, for tests that compute a lot
// on a slow software GPU. Two layers of llama, which add little to a token's own vector, so that logits lie apart; every run writes the same bytes.
import { writeFileSync } from 'node:fs';

const EMBD = 256, FF = 512, LAYERS = 2, HEADS = 4, KV = 2, HEAD = 64, VOCAB = 300;
const U32 = 4, I32 = 5, F32 = 6, STRING = 8, ARRAY = 9;

const u32 = n => { const b = Buffer.alloc(4); b.writeUInt32LE(n); return b; };
const u64 = n => { const b = Buffer.alloc(8); b.writeBigUInt64LE(BigInt(n)); return b; };
const text = s => Buffer.concat([u64(Buffer.byteLength(s)), Buffer.from(s)]);
const value = (key, type, ...bytes) => Buffer.concat([text(key), u32(type), ...bytes]);
const list = (key, type, items) => value(key, ARRAY, u32(type), u64(items.length), ...items);
const f32 = n => Buffer.from(new Float32Array([n]).buffer);

const tokens = Array.from({ length: VOCAB }, (_, i) => (i < 3 ? ['<unk>', '<s>', '</s>'][i]
    : i < 259 ? `<0x${(i - 3).toString(16).toUpperCase().padStart(2, '0')}>` : `(${i})`));
const kinds = tokens.map((_, i) => (i === 0 ? 2 : i < 3 ? 3 : i < 259 ? 6 : 1));

const layer = l => [['attn_norm', EMBD], ['ffn_norm', EMBD], ['attn_q', EMBD, HEADS * HEAD], ['attn_k', EMBD, KV * HEAD],
    ['attn_v', EMBD, KV * HEAD], ['attn_output', HEADS * HEAD, EMBD], ['ffn_gate', EMBD, FF], ['ffn_up', EMBD, FF],
    ['ffn_down', FF, EMBD]].map(([name, ...shape]) => [`blk.${l}.${name}.weight`, ...shape]);

export function writeTiny(path) {
    let state = 11;
    const random = () => { // -1..1, mulberry32
        state = (state + 0x6d2b79f5) | 0;
        let t = Math.imul(state ^ (state >>> 15), 1 | state);
        t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
        return ((t ^ (t >>> 14)) >>> 0) / 2 ** 31 - 1;
    };
    const shapes = [['token_embd.weight', EMBD, VOCAB], ['output_norm.weight', EMBD], ...[...Array(LAYERS).keys()].flatMap(layer)];
    let offset = 0;
    const tensors = shapes.map(([name, cols, rows = 1]) => {
        const n = cols * rows, norm = rows === 1;
        const data = Buffer.from(Float32Array.from({ length: n }, () => (norm ? 1 + random() / 10 : random() / (/output|down/.test(name) ? 30 : 9))).buffer);
        const info = Buffer.concat([text(name), u32(norm ? 1 : 2), u64(cols), ...norm ? [] : [u64(rows)], u32(0), u64(offset)]);
        offset += data.length; // a multiple of 32
        return { info, data };
    });
    const ints = { block_count: LAYERS, context_length: 512, embedding_length: EMBD, feed_forward_length: FF,
        'attention.head_count': HEADS, 'attention.head_count_kv': KV };
    const values = [value('general.architecture', STRING, text('llama')),
        ...Object.entries(ints).map(([k, v]) => value(`llama.${k}`, U32, u32(v))),
        value('llama.attention.layer_norm_rms_epsilon', F32, f32(1e-5)),
        value('tokenizer.ggml.model', STRING, text('llama')),
        list('tokenizer.ggml.tokens', STRING, tokens.map(text)),
        list('tokenizer.ggml.scores', F32, tokens.map((_, i) => f32(-i))),
        list('tokenizer.ggml.token_type', I32, kinds.map(u32)),
        value('tokenizer.ggml.bos_token_id', U32, u32(1)), value('tokenizer.ggml.eos_token_id', U32, u32(2))];
    const head = Buffer.concat([Buffer.from('GGUF'), u32(3), u64(tensors.length), u64(values.length), ...values,
        ...tensors.map(t => t.info)]);
    writeFileSync(path, Buffer.concat([head, Buffer.alloc(-head.length & 31), ...tensors.map(t => t.data)]));
}
