// attend.wgsl - attention over a span of positions: workgroup (x, y, z) of 256 has token x, HEADS_WG
// query heads of one KV head and span y, some tiles of 256 positions (span_tiles()), one after
// another. Online softmax: what comes out is the largest score, the sum of exponentials and the
// weighted sum of the values, for merge.wgsl. Matches attend_span() of attend.c within float
// rounding; weights of records are rounded to 14 bits, as there.
//
// Values of records come with a unit each. The score to which exponentials refer is the largest of
// score + log(unit), so the largest weight is 1 and the rounding needs no pass of its own. Scores are
// to base 2 from scores() on. Arrays by head are indexed by constants wherever a barrier is in the
// way of unrolling: else they lie in memory.
override GROUP: u32; // query heads of a KV head
override SPANS: u32;    // at most
override VISIBLE: u32;  // sliding window in positions, 0: none
override SINKS: u32;
override WINDOW: u32;
@group(0) @binding(0) var<storage, read> step: array<u32>;
@group(0) @binding(6) var<storage, read_write> partial: array<f32>;
var<workgroup> tops: array<atomic<u32>, MOST_HEADS * 4u>; // four a head: fewer wait for each other
var<workgroup> scales: array<u32, 64>; // of the records of values of a tile
var<private> unit: vec2f; // of the position's value: logarithm; inverse, negative where it is of no weight
var<private> top: array<f32, MOST_HEADS>;
var<private> sum: array<vec2f, MOST_HEADS>; // of exponentials, of integer weights
const LOWEST = -3.0e38;

// The q8 row of a position that is none of the records; the first `begin` are sinks.
fn recent_row(p: u32, begin: u32) -> u32 {
  return select(SINKS + p % max(WINDOW, 1u), p, p < begin);
}

// Floats in the order of integers.
fn key_of(x: f32) -> u32 {
  let u = bitcast<u32>(x);
  return select(~u, u | 0x80000000u, u < 0x80000000u);
}
fn float_of(key: u32) -> f32 {
  return bitcast<f32>(select(~key, key & 0x7fffffffu, key >= 0x80000000u));
}

fn scores(i: u32, head: u32, kv: u32, p: u32, begin: u32, records: u32) {
  unit = vec2f(0.0, 1.0);
  if (V_TYPE >= 3u && p >= begin && p < records) {
    let b = (scales[i / 4u] >> (8u * (i % 4u))) & 255u;
    unit.x = log_unit(max(b, 1u), V_TYPE);
    unit.y = exp2(-unit.x) * select(1.0, -1.0, b == 0u);
  }
  score_position(head, kv, p, begin, records);
  for (var h = 0u; h < HEADS_WG; h++) {
    score[h] = score[h] * 1.44269504 + unit.x;
    atomicMax(&tops[4u * h + i / 8u % 4u], key_of(score[h]));
  }
}

// New top of each head; acc and sum are brought to it.
fn raise() {
  for (var h = 0u; h < HEADS_WG; h++) {
    let t = float_of(max(max(atomicLoad(&tops[4u * h]), atomicLoad(&tops[4u * h + 1u])),
                         max(atomicLoad(&tops[4u * h + 2u]), atomicLoad(&tops[4u * h + 3u]))));
    let f = exp2(top[h] - t);
    top[h] = t;
    sum[h] *= f;
    acc[h] *= f;
    if (VECTORS == 2u) { acc_high[h] *= f; }
  }
}

fn weights(i: u32, kv: u32, p: u32, seen: bool, begin: u32, records: u32) {
  let as_record = V_TYPE >= 3u && p >= begin && p < records;
  var scale = 1.0;
  if (seen && V_TYPE > 0u && !as_record) {
    let row = select(p, recent_row(p, begin), V_TYPE >= 3u);
    scale = bitcast<f32>(vs[V_SCALES + kv * V_ROWS + row]);
    if (V_TYPE >= 3u) { scale *= select(16383.0, 16383.0 / 2.0, V_TYPE == 3u); }
  }
  for (var h = 0u; h < HEADS_WG; h++) {
    var w = 0.0;
    var c = 0u;
    if (seen) { w = exp2(score[h] - top[h]); }
    if (as_record && unit.y > 0.0) { c = min(u32(w * 16383.0 + 0.5), 16383u); }
    sum[h] += vec2f(w * abs(unit.y), f32(c));
    pair[h * 256u + i] = vec2<u32>(c >> 7u, c & 127u);
    red[h * 256u + i] = w * scale;
  }
}

// The sum of x over the workgroup, x.y by the way of x.x.
fn total(i: u32, x: vec2f) -> vec2f {
  workgroupBarrier();
  red[i] = x.x;
  red[256u + i] = x.y;
  workgroupBarrier();
  if (i < 32u) {
    var t = 0.0;
    for (var k = 0u; k < 16u; k++) { t += red[i / 16u * 256u + 16u * k + i % 16u]; }
    red[512u + i] = t;
  }
  workgroupBarrier();
  var t = vec2f();
  for (var k = 0u; k < 16u; k++) { t += vec2f(red[512u + k], red[528u + k]); }
  return t;
}

// Coordinate of lane c of vector e of a column.
fn coordinate(column: u32, e: u32, c: u32) -> u32 {
  if (V_TYPE >= 3u) { return c * (D / 4u) + column; }
  return 4u * (VECTORS * column + e) + c;
}

// Adds one vector of each column over the slices, less the offset of u.
fn store_vector(i: u32, at: u32, e: u32, x: vec4f, weight: f32) {
  workgroupBarrier();
  red[i] = x.x;
  red[256u + i] = x.y;
  red[512u + i] = x.z;
  red[768u + i] = x.w;
  workgroupBarrier();
  if (i < 4u * COLUMNS) {
    var y = 0.0;
    for (var k = 0u; k < SLICES; k++) { y += red[i / COLUMNS * 256u + k * COLUMNS + i % COLUMNS]; }
    if (V_TYPE == 4u) { y = (y - 8.0 * weight) * (1.0 / 16383.0); }
    if (V_TYPE == 3u) { y = (2.0 * y - 31.0 * weight) * (1.0 / 16383.0); }
    partial[at + coordinate(i % COLUMNS, e, i / COLUMNS)] = y;
  }
}

fn store(i: u32, at: u32, t: f32, sums: vec2f, x: vec4f, y: vec4f) {
  let s = total(i, sums);
  store_vector(i, at, 0u, x, s.y);
  if (VECTORS == 2u) { store_vector(i, at, 1u, y, 0.0); }
  if (i == 0u) {
    partial[at + D] = t * 0.693147181;
    partial[at + D + 1u] = s.x;
  }
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) n: vec3u,
        @builtin(local_invocation_index) i: u32) {
  let kv = wg.z * HEADS_WG / GROUP;
  let head = (wg.x * n.z + wg.z) * HEADS_WG; // of all tokens' heads
  let pos = step[0] + wg.x;
  let records = step[1];
  let begin = min(SINKS, records); // of records
  let tiles = span_tiles(pos, SPANS);
  var visible = 0u;
  if (VISIBLE > 0u && pos + 1u > VISIBLE) { visible = pos + 1u - VISIBLE; }
  for (var h = 0u; h < HEADS_WG; h++) { top[h] = LOWEST; }
  var e = max(wg.y * tiles, visible / 256u);
  let last = min((wg.y + 1u) * tiles, pos / 256u + 1u);
  if (V_TYPE >= 3u && i < 64u) { scales[i] = value_scales(kv, 256u * e + 4u * i); }
  workgroupBarrier();
  for (; e < last; e++) {
    let p0 = 256u * e;
    let first = max(p0, visible);
    let end = min(pos + 1u, p0 + 256u);
    let p = p0 + i;
    let seen = p >= first && p < end;
    var coming = 0u; // scales, loaded before the keys are waited for
    if (V_TYPE >= 3u && i < 64u) { coming = value_scales(kv, p0 + 256u + 4u * i); }
    if (seen) { scores(i, head, kv, p, begin, records); }
    workgroupBarrier();
    raise();
    weights(i, kv, p, seen, begin, records);
    if (V_TYPE >= 3u && i < 64u) { scales[i] = coming; }
    workgroupBarrier();
    accum(i, kv, p0, first, end, begin, records);
  }
  let at = (head * SPANS + wg.y) * (D + 4u);
  let next = SPANS * (D + 4u);
  store(i, at, top[0], sum[0], acc[0], acc_high[0]);
  if (HEADS_WG > 1u) { store(i, at + next, top[1], sum[1], acc[1], acc_high[1]); }
  if (HEADS_WG > 2u) {
    store(i, at + 2u * next, top[2], sum[2], acc[2], acc_high[2]);
    store(i, at + 3u * next, top[3], sum[3], acc[3], acc_high[3]);
  }
}
