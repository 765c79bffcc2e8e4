// shaders-list.mjs - every GPU kernel of src/gpu with its texts and the variants that are compiled in tests.
import { readFileSync } from 'node:fs';

const root = new URL('../src/gpu/', import.meta.url);
const read = (name) => readFileSync(new URL(name, root), 'utf8');
/** The parts of each kernel, from the table in ops_gpu.c: {name: [parts]}. */
function table() {
  const table = read('ops_gpu.c').match(/\} kernels\[\] = \{([\s\S]*?)\n\};/)[1];
  const rows = [...table.matchAll(/\{ "(\w+)", \{ ([^}]*) \} \}/g)];
  return Object.fromEntries(rows.map((r) => [r[1], r[2].match(/\w+/g)]));
}

/** What idot() is. */
export const dots = {
  native: 'fn idot(a:u32,b:u32)->i32{return dot4I8Packed(a,b);}\n',
  plain: read('ops_gpu.c').match(/dot_plain\[\] =([\s\S]*?);\n/)[1].match(/"(.*?)"/g)
    .map((s) => JSON.parse(s)).join(''),
};

/** All combinations of the values: {A: [1, 2], B: 3} gives two objects. */
function combine(spec) {
  let all = [{}];
  for (const [key, values] of Object.entries(spec))
    all = all.flatMap((c) => [values].flat().map((v) => ({ ...c, [key]: v })));
  return all;
}

const mul = { ROWS: 100, UNITS: 4, ROWS_WG: [2, 16], SLICES: 8, LANES: [1, 8], ADD: [0, 1], AT: 64 };
const squares = { SQUARES: [0, 4], INPUTS: 128, EPS: 1e-5, SQUARES_AT: 32 };
const next = { UNITS: 4, SLICES: 4, LANES: [1, 4], OUT_AT: 64 };
const tails = [{ GLU: 0, ROWS_WG: 32 }, { GLU: 64, ROWS_WG: 64 }];
const heads = { ...next, ...tails[0], INPUTS: [128, 8192], ONE: [0, 1], HEAD: 64, EACH: 196 };
const batch = { ROWS: 100, UNITS: 4, ROWS_WG: [2, 16], SLICES: [1, 8], ADD: [0, 1], AT: 64 };
const tiles = { ROWS: 100, CHUNKS: 4, GROUPS_WG: [2, 32], SLICES: [1, 8], ADD: [0, 1], AT: 0, BITS: [2, 3] };
const types = [0, 1, 3, 4];
const variants = {
  norm: { N: 500, SRC: [0, 1, 2, 3], EPS: 1e-5, HEAD: 64, EACH: 198 },
  quant: { N: 500, SRC: [0, 1, 2, 3], EPS: 1e-5, HEAD: 64, EACH: 198, PAD: 512 },
  rotate: { N: 4096, SRC: [0, 1, 2, 3], EPS: 1e-5, HEAD: 64, EACH: 198, SET: [16, 4096], STRIDE: [1, 8], SIGN: [0, 1],
            SEED: 4294967295, FACTOR: 0.5, QUANT: [0, 1] },
  quant_t: { N: 8192 },
  turn_quant: { SETS: 56, FOURS: [1, 16], SEED: 7, FACTOR: 0.5 },
  mul_q4: { ...mul, ...squares },
  mul_q8: { ...mul, ...squares },
  mul_s: { ...mul, ...squares, LEVELS: [4, 8], ROW_SCALES: 64 },
  next_q4: tails.map((t) => ({ ...next, ...squares, ...t })),
  next_q8: tails.map((t) => ({ ...next, ...squares, ...t })),
  next_s: tails.map((t) => ({ ...next, ...squares, ...t, LEVELS: [4, 8], ROW_SCALES: 64 })),
  heads_q4: heads,
  heads_q8: heads,
  heads_s: { ...heads, LEVELS: [4, 8], ROW_SCALES: 64 },
  mul_f: { ...mul, KIND: [0, 1, 2] },
  mul_t: tiles,
  batch_q4: batch,
  batch_q8: batch,
  batch_s: { ...batch, LEVELS: [4, 8], ROW_SCALES: 64 },
  batch_f: { ...batch, KIND: [0, 1, 2] },
  batch_t: tiles,
  heads: { D: [64, 96], ROOT: 0.125, HEADS: 4, KV_HEADS: 2, ROT: 64, HALVES: [0, 1], BIAS: [0, 1],
           NORM: [0, 1], EPS: 1e-5, SCALE: 0.125, K_TYPE: types, V_TYPE: types, K_ROWS: 80,
           V_ROWS: 80, K_SCALES: 9999, V_SCALES: 9999, SINKS: 4, WINDOW: 64 },
  attend: { D: [64, 128], GROUP: 4, HEADS_WG: [1, 4], SPANS: 3, VISIBLE: [0, 100], SINKS: 4, WINDOW: 64,
            CONTEXT: 512, K_TYPE: types, K_ROWS: 80, K_SCALES: 99, K_RECORDS: 100, K_SIGNS: 200,
            V_TYPE: types, V_ROWS: 80, V_SCALES: 99, V_RECORDS: 100, V_SIGNS: 200 },
  merge: { D: 96, ROOT: 0.2, SPANS: 3, ROTATED: [0, 1], FIRST: [0, 100] },
  encode: { D: [64, 256], KIND: [3, 4], KEYS: [0, 1], ROWS: 80, SCALES: 99, RECORDS: 100, SIGNS: 200,
            CONTEXT: 512, SINKS: 4, WINDOW: 64 },
  embed: { N: 100, TYPE: [0, 1, 2, 3, 4, 5, 6], UNITS: 2, FIRST: 0, ROWS: 100 },
  argmax: { N: 5000, SECOND: [0, 1] },
  topk: { N: 5000, FIRST: [0, 1], LAST: [0, 1] },
};

/** [{ name, files: [name of each part], texts: [text of each], constants: [of each variant] }] */
export const kernels = Object.entries(table()).map(([name, parts]) => {
  if (!variants[name]) throw new Error(`${name}: no variants are listed here`);
  const files = ['common', ...parts];
  return { name, files, texts: files.map((f) => read(`${f}.wgsl`)), constants: [variants[name]].flat().flatMap((v) => combine({ ...v, STEP: 512 })) };
});
for (const name of Object.keys(variants))
  if (!kernels.some((k) => k.name === name)) throw new Error(`no kernel ${name}`);
