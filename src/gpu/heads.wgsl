// heads.wgsl - what happens to q, k and v between their projection and attention, one head a
// workgroup of 128 (query heads, then heads of K, then of V): bias, RMSNorm of the head, RoPE
// (rmsnorm, rope of kern/float_scalar.c), the rotation of basis.c; then a query is made ready to be
// read (load_queries() of attend.c) and a row is put into the cache (kv_put_f16, kv_put_q8). For
// records the row goes to the ring of recent rows, and to the sinks. Layouts: GPU.md.
override HEADS: u32;
override KV_HEADS: u32;
override ROT: u32;    // inputs that RoPE turns
override HALVES: u32; // their pairs are (p, p + ROT / 2), else neighbours
override BIAS: u32;
override NORM: u32;
override EPS: f32;
override SCALE: f32; // of queries
override K_TYPE: u32; // F16 0, Q8 1, K3 3, K2 4
override V_TYPE: u32;
override K_ROWS: u32; // f16 or q8 rows of a head, a multiple of 16
override V_ROWS: u32;
override K_SCALES: u32; // where the scales of the q8 rows begin
override V_SCALES: u32;
override SINKS: u32;
override WINDOW: u32;
@group(0) @binding(0) var<storage, read> step: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;    // q, k, v
@group(0) @binding(2) var<storage, read> bias: array<f32>; // likewise
@group(0) @binding(3) var<storage, read> norms: array<f32>; // of q's heads, of k's
@group(0) @binding(4) var<storage, read> turns: array<f32>; // (n_ctx, ROT): cosines, then sines
@group(0) @binding(5) var<storage, read_write> query: array<u32>;
@group(0) @binding(6) var<storage, read_write> k: array<u32>;
@group(0) @binding(7) var<storage, read_write> vs: array<u32>;
var<workgroup> part: array<f32, 128>;

fn norm_head(i: u32, side: u32) {
  var s = 0.0;
  for (var j = i; j < D; j += 128u) { s += v[j] * v[j]; }
  part[i] = s;
  workgroupBarrier();
  for (var h = 64u; h > 0u; h >>= 1u) {
    if (i < h) { part[i] += part[i + h]; }
    workgroupBarrier();
  }
  let r = 1.0 / sqrt(part[0] / f32(D) + EPS);
  for (var j = i; j < D; j += 128u) { v[j] = v[j] * r * norms[(side * D + j) % arrayLength(&norms)]; }
  workgroupBarrier();
}

fn turn(i: u32, pos: u32) {
  let n = ROT / 2u;
  if (i < n) {
    let at = pos * ROT + i;
    let e = select(2u * i, i, HALVES == 1u);
    let f = select(2u * i + 1u, i + n, HALVES == 1u);
    let c = turns[at];
    let s = turns[at + n];
    let p = v[e];
    let q = v[f];
    v[e] = p * c - q * s;
    v[f] = p * s + q * c;
  }
  workgroupBarrier();
}

// The scale of v as q8: an f16 that 127 codes reach; 0x7e00 if v is no number.
fn row_scale(i: u32) -> u32 {
  var top = 0u;
  for (var j = i; j < D; j += 128u) { top = max(top, magnitude(v[j])); }
  part[i] = bitcast<f32>(min(top, INFINITE));
  workgroupBarrier();
  for (var h = 64u; h > 0u; h >>= 1u) {
    if (i < h && bitcast<u32>(part[i + h]) > bitcast<u32>(part[i])) { part[i] = part[i + h]; }
    workgroupBarrier();
  }
  top = bitcast<u32>(part[0]);
  workgroupBarrier();
  if (top >= INFINITE) { return 0x7e00u; }
  let most = bitcast<f32>(top);
  var h = to_f16(divide(most, 127.0));
  if (h < 0x7c00u && from_f16(h) * 127.0 < most) { h++; }
  if (h >= 0x7c00u) { h = 0x7e00u; }
  return h;
}

fn codes(j: vec4<u32>, h: u32) -> vec4<i32> {
  if (h == 0u || h >= 0x7c00u) { return vec4<i32>(); }
  return vec4<i32>(round(vec4f(v[j.x], v[j.y], v[j.z], v[j.w]) * divide(1.0, from_f16(h))));
}

// The coordinates of word t of a row: beside records in their order.
fn of_word(t: u32, kind: u32) -> vec4<u32> {
  if (kind >= 3u) { return vec4<u32>(0u, 1u, 2u, 3u) * (D / 4u) + t; }
  return vec4<u32>(0u, 1u, 2u, 3u) + 4u * t;
}

// f32 with the scale of attention where K is f16; else int8 codes as those of a row, scale and sum.
// D + 4 words a head.
fn put_query(i: u32, head: u32) { // heads of a token, then of the next
  let at = head * (D + 4u);
  for (var j = i; j < D; j += 128u) { v[j] *= SCALE; }
  workgroupBarrier();
  if (K_TYPE == 0u) {
    for (var j = i; j < D; j += 128u) { query[at + j] = bitcast<u32>(v[j]); }
    return;
  }
  let h = row_scale(i);
  let words = D / 4u;
  var sum = 0;
  if (i < words) {
    let c = codes(of_word(i, K_TYPE), h);
    query[at + i] = pack4(c);
    sum = c.x + c.y + c.z + c.w;
  }
  part[i] = f32(sum);
  workgroupBarrier();
  if (i == 0u) {
    var total = 0.0;
    for (var j = 0u; j < words; j++) { total += part[j]; }
    query[at + words] = bitcast<u32>(from_f16(h));
    query[at + words + 1u] = bitcast<u32>(i32(total));
  }
}

// Word j of a row of `words`: keys lie in blocks of 16 rows, vector after vector; values row by row.
fn word_at(side: u32, head: u32, rows: u32, row: u32, words: u32, j: u32) -> u32 {
  if (side == 1u) { return (head * rows + row) * words + j; }
  return (((head * rows + row) / 16u * (words / 4u) + j / 4u) * 16u + row % 16u) * 4u + j % 4u;
}

fn put_word(side: u32, at: u32, value: u32) {
  if (side == 0u) { k[at] = value; } else { vs[at] = value; }
}

fn put_row(i: u32, side: u32, head: u32, pos: u32) {
  let kind = select(V_TYPE, K_TYPE, side == 0u);
  let rows = select(V_ROWS, K_ROWS, side == 0u);
  let scales = select(V_SCALES, K_SCALES, side == 0u);
  if (kind == 0u) {
    if (i < D / 2u) {
      let word = to_f16(v[2u * i]) | (to_f16(v[2u * i + 1u]) << 16u);
      put_word(side, word_at(side, head, rows, pos, D / 2u, i), word);
    }
    return;
  }
  let h = row_scale(i);
  var row = pos;
  var sink = rows; // none
  if (kind >= 3u) {
    row = SINKS + pos % WINDOW;
    if (pos < SINKS) { sink = pos; }
  }
  if (i < D / 4u) {
    let word = pack4(codes(of_word(i, kind), h));
    put_word(side, word_at(side, head, rows, row, D / 4u, i), word);
    if (sink < rows) { put_word(side, word_at(side, head, rows, sink, D / 4u, i), word); }
  }
  if (i == 0u) {
    let scale = bitcast<u32>(from_f16(h));
    put_word(side, scales + head * rows + row, scale);
    if (sink < rows) { put_word(side, scales + head * rows + sink, scale); }
  }
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) i: u32) {
  let head = wg.x;
  let pos = step[0] + wg.z;
  let is_q = head < HEADS;
  let is_v = head >= HEADS + KV_HEADS;
  for (var j = i; j < D; j += 128u) {
    v[j] = x[wg.z * STEP + head * D + j];
    if (BIAS == 1u) { v[j] += bias[(head * D + j) % arrayLength(&bias)]; }
  }
  workgroupBarrier();
  if (!is_v) {
    if (NORM == 1u) { norm_head(i, select(1u, 0u, is_q)); }
    turn(i, pos);
  }
  if (select(K_TYPE, V_TYPE, is_v) >= 2u) { basis_in(i); }
  if (is_q) {
    put_query(i, wg.z * HEADS + head);
  } else if (is_v) {
    put_row(i, 1u, head - HEADS - KV_HEADS, pos);
  } else {
    put_row(i, 0u, head - HEADS, pos);
  }
}
