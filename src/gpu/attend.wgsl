// attend.wgsl - attention of one token over a span of 256 positions: workgroup (x, y) of 256 has
// HEADS_WG query heads of one KV head and span y. Online softmax: what comes out is the span's
// largest score, its sum of exponentials and the weighted sum of the values, for merge.wgsl. Matches
// attend_span() of attend.c with score_*, softmax and accum_* of kern/ within float rounding.
override D: u32;
override GROUP: u32; // query heads of a KV head
override HEADS_WG: u32;
override SPANS: u32;    // of the context
override VISIBLE: u32;  // sliding window in positions, 0: none
override SINKS: u32;
override WINDOW: u32;
override K_TYPE: u32;
override K_ROWS: u32;
override K_SCALES: u32;
override K_RECORDS: u32; // where the records begin
override K_SIGNS: u32;
override V_TYPE: u32;
override V_ROWS: u32;
override V_SCALES: u32;
override V_RECORDS: u32;
override V_SIGNS: u32;
override CONTEXT: u32; // records of a head
@group(0) @binding(0) var<storage, read> step: array<u32>;
@group(0) @binding(1) var<storage, read> query: array<vec4<u32>>; // (D + 4) / 4 a head
@group(0) @binding(2) var<storage, read> k4: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> k1: array<u32>; // the same
@group(0) @binding(4) var<storage, read> vs: array<u32>;
@group(0) @binding(5) var<storage, read> v4: array<vec4<u32>>; // the same
@group(0) @binding(6) var<storage, read_write> partial: array<f32>;
var<workgroup> s: array<f32, HEADS_WG * 256u>;
var<workgroup> red: array<vec4f, 256>;
var<workgroup> out: array<f32, HEADS_WG * D>;
const LOWEST = -3.0e38;

fn record_words() -> u32 { return (D / 16u + 3u) / 4u * 4u; }
fn sign_words() -> u32 { return D / 32u; }

// The scale byte of a record whose words begin at `at`.
fn scale_byte(k: bool, at: u32) -> u32 {
  var b = 0u;
  if (D == 128u) { // bit 23 of each word
    var c = v4[at / 4u];
    var d = v4[at / 4u + 1u];
    if (k) {
      c = k4[at / 4u];
      d = k4[at / 4u + 1u];
    }
    c = (c >> vec4<u32>(23u)) & vec4<u32>(1u);
    d = (d >> vec4<u32>(23u)) & vec4<u32>(1u);
    return c.x | (c.y << 1u) | (c.z << 2u) | (c.w << 3u) |
           ((d.x | (d.y << 1u) | (d.z << 2u) | (d.w << 3u)) << 4u);
  }
  for (var g = 0u; g < 8u; g++) {
    let t = (2u * g + 1u) * (D / 4u) / 16u;
    var c = 0u;
    if (k) { c = k1[at + t / 4u]; } else { c = vs[at + t / 4u]; }
    b |= ((c >> (8u * (t % 4u) + 7u)) & 1u) << g;
  }
  return b;
}

// Whether side `kind` reads position p as a q8 row, and which: rows of records are the recent ones.
fn recent_row(p: u32, records: u32) -> u32 {
  return select(SINKS + p % max(WINDOW, 1u), p, p < min(SINKS, records));
}
fn as_record(kind: u32, p: u32, records: u32) -> bool {
  return kind >= 3u && p >= min(SINKS, records) && p < records;
}

fn dot16(a: vec4<u32>, b: vec4<u32>) -> i32 {
  return idot(a.x, b.x) + idot(a.y, b.y) + idot(a.z, b.z) + idot(a.w, b.w);
}

fn word_dots(c: u32, before: u32, sg: u32) -> vec4<u32> {
  let st = states(c, before);
  return vec4<u32>(lanes_of(st.x, K_TYPE, sg), lanes_of(st.y, K_TYPE, sg >> 4u),
                   lanes_of(st.z, K_TYPE, sg >> 8u), lanes_of(st.w, K_TYPE, sg >> 12u));
}

fn score_record(i: u32, head: u32, kv: u32, p: u32) {
  let at = K_RECORDS + (kv * CONTEXT + p) * record_words();
  let signs = K_SIGNS + (kv * CONTEXT + p) * sign_words();
  var dots: array<i32, 8>;
  var before = 0u;
  for (var j = 0u; j < D / 16u; j += 4u) { // a vector; words behind the record have no query
    let c = k4[(at + j) / 4u];
    var sg = vec2u();
    if (K_TYPE == 3u) {
      sg.x = k1[signs + j / 2u];
      if (j + 2u < D / 16u) { sg.y = k1[signs + j / 2u + 1u]; }
    }
    var u = array<vec4<u32>, 4>(word_dots(c.x, before, sg.x), word_dots(c.y, c.x, sg.x >> 16u),
                                word_dots(c.z, c.y, sg.y), word_dots(c.w, c.z, sg.y >> 16u));
    before = c.w;
    for (var h = 0u; h < HEADS_WG; h++) {
      let q = (head + h) * (D + 4u) / 4u + D / 16u + j;
      for (var w = 0u; w < 4u; w++) {
        if (j + w < D / 16u) { dots[h] += dot16(u[w], query[q + w]); }
      }
    }
  }
  let rms = kv_rms(scale_byte(true, at));
  for (var h = 0u; h < HEADS_WG; h++) {
    let q = query[((head + h) * (D + 4u) + D) / 4u]; // scale, sum
    let sum = bitcast<i32>(q.y);
    let unit = select(rms * (1.0 / 1.40), rms * (0.25 / 1.38), K_TYPE == 3u);
    let total = select(dots[h] - 4 * sum, 2 * dots[h] - 31 * sum, K_TYPE == 3u);
    s[h * 256u + i] = unit * bitcast<f32>(q.x) * f32(total);
  }
}

fn score_q8(i: u32, head: u32, kv: u32, row: u32) {
  let at = (kv * K_ROWS + row) / 16u * (D / 16u) * 16u + row % 16u;
  let scale = bitcast<f32>(k1[K_SCALES + kv * K_ROWS + row]);
  var dots: array<i32, 8>;
  for (var j = 0u; j < D / 16u; j++) {
    let c = k4[at + 16u * j];
    for (var h = 0u; h < HEADS_WG; h++) {
      dots[h] += dot16(c, query[(head + h) * (D + 4u) / 4u + j]);
    }
  }
  for (var h = 0u; h < HEADS_WG; h++) {
    let q = query[((head + h) * (D + 4u) + D) / 4u];
    s[h * 256u + i] = bitcast<f32>(q.x) * scale * f32(dots[h]);
  }
}


fn score_f16(i: u32, head: u32, kv: u32, row: u32) {
  let at = (kv * K_ROWS + row) / 16u * (D / 8u) * 16u + row % 16u;
  var dots: array<f32, 8>;
  for (var j = 0u; j < D / 8u; j++) {
    let c = k4[at + 16u * j];
    let x = vec4f(unpack2x16float(c.x), unpack2x16float(c.y));
    let y = vec4f(unpack2x16float(c.z), unpack2x16float(c.w));
    for (var h = 0u; h < HEADS_WG; h++) {
      let q = (head + h) * (D + 4u) / 4u + 2u * j;
      dots[h] += dot(x, bitcast<vec4f>(query[q])) + dot(y, bitcast<vec4f>(query[q + 1u]));
    }
  }
  for (var h = 0u; h < HEADS_WG; h++) { s[h * 256u + i] = dots[h]; }
}

// Scores to weights; largest score and sum of each head to partial. A head has 256 / HEADS_WG
// invocations, a power of two.
fn softmax(i: u32, head: u32, span: u32, p0: u32, first: u32, end: u32) {
  let lanes = 256u / HEADS_WG;
  let h = i / lanes;
  let l = i % lanes;
  var top = LOWEST;
  for (var p = l; p < 256u; p += lanes) {
    if (p0 + p >= first && p0 + p < end) { top = max(top, s[h * 256u + p]); }
  }
  red[i].x = top;
  workgroupBarrier();
  for (var w = lanes / 2u; w > 0u; w >>= 1u) {
    if (l < w) { red[i].x = max(red[i].x, red[i + w].x); }
    workgroupBarrier();
  }
  top = red[h * lanes].x;
  var sum = 0.0;
  for (var p = l; p < 256u; p += lanes) {
    var e = 0.0;
    if (p0 + p >= first && p0 + p < end) { e = exp(s[h * 256u + p] - top); }
    s[h * 256u + p] = e;
    sum += e;
  }
  red[i].y = sum;
  workgroupBarrier();
  for (var w = lanes / 2u; w > 0u; w >>= 1u) {
    if (l < w) { red[i].y += red[i + w].y; }
    workgroupBarrier();
  }
  if (l == 0u) {
    let at = ((head + h) * SPANS + span) * (D + 4u) + D;
    partial[at] = top;
    partial[at + 1u] = red[i].y;
  }
}

// Adds x, coordinates at, at + 1 * stride.. of each invocation, over the slices of `words`.
fn add_slices(i: u32, words: u32, slices: u32, x: vec4f, at: u32, stride: u32, n: u32) {
  workgroupBarrier();
  red[i] = x;
  workgroupBarrier();
  if (i < words) {
    var sum = vec4f();
    for (var e = 0u; e < slices; e++) { sum += red[e * words + i]; }
    for (var c = 0u; c < n; c++) { out[at + c * stride] += sum[c]; }
  }
}

// Weights of the records, times their units, become integers of 14 bits (round_weights() of
// kern/kv_scalar.c); returns the step they are multiples of. A head at a time.
fn round_weights(i: u32, h: u32, used: bool) -> f32 {
  var w = 0.0;
  if (used) { w = s[h * 256u + i]; }
  workgroupBarrier();
  red[i].x = w;
  workgroupBarrier();
  for (var n = 128u; n > 0u; n >>= 1u) {
    if (i < n) { red[i].x = max(red[i].x, red[i + n].x); }
    workgroupBarrier();
  }
  let top = red[0].x;
  var c = 0u;
  if (top > 0.0) { c = min(u32(w * (16383.0 / top) + 0.5), 16383u); }
  workgroupBarrier();
  red[i] = vec4f(bitcast<f32>(c), 0.0, 0.0, 0.0);
  workgroupBarrier();
  if (top >= 0.0) { return top * (1.0 / 16383.0); }
  return top; // no number
}

// Two 16-bit sums a word: values of at most 31 times 7 bits of weight, for at most 16 positions.
fn accum_records(i: u32, h: u32, kv: u32, p0: u32, first: u32, end: u32) {
  let words = D / 16u;
  let slices = 256u / words;
  let j = i % words;
  let unit = round_weights(i, h, p0 + i >= first && p0 + i < end);
  var high: array<vec2u, 4>; // of the four steps: lanes 0 and 2, lanes 1 and 3
  var low: array<vec2u, 4>;
  var total = 0u;
  if (i < slices * words) {
    for (var p = first + i / words; p < end; p += slices) {
      let at = V_RECORDS + (kv * CONTEXT + p) * record_words() + j;
      let c = vs[at];
      var before = 0u;
      if (j > 0u) { before = vs[at - 1u]; }
      var sg = 0u;
      if (V_TYPE == 3u) {
        sg = vs[V_SIGNS + (kv * CONTEXT + p) * sign_words() + j / 2u] >> (16u * (j % 2u));
      }
      let weight = bitcast<u32>(red[p - p0].x);
      let up = weight >> 7u;
      let down = weight & 127u;
      let st = states(c, before);
      for (var t = 0u; t < 4u; t++) {
        let u = lanes_of(st[t], V_TYPE, sg >> (4u * t));
        let pair = vec2u(u & 0x00ff00ffu, (u >> 8u) & 0x00ff00ffu);
        high[t] += pair * up;
        low[t] += pair * down;
      }
      total += weight;
    }
  }
  for (var t = 0u; t < 4u; t++) {
    let a = vec4<u32>(high[t] & vec2u(0xffffu), high[t] >> vec2u(16u));
    let b = vec4<u32>(low[t] & vec2u(0xffffu), low[t] >> vec2u(16u));
    let sum = vec4<i32>(a * 128u + b);
    let n = i32(total);
    let x = select(sum - vec4<i32>(4 * n), 2 * sum - vec4<i32>(31 * n), V_TYPE == 3u);
    add_slices(i, words, slices, unit * vec4f(x), h * D + 4u * j + t, D / 4u, 4u);
  }
}

// Positions first..end-1 that are q8 rows.
fn accum_q8(i: u32, h: u32, kv: u32, p0: u32, first: u32, end: u32, records: u32) {
  let words = D / 4u;
  let slices = 256u / words;
  let j = i % words;
  var acc = vec4f();
  if (i < slices * words) {
    for (var p = first + i / words; p < end; p += slices) {
      if (as_record(V_TYPE, p, records)) { continue; }
      var row = p;
      if (V_TYPE >= 3u) { row = recent_row(p, records); }
      let c = vs[(kv * V_ROWS + row) * words + j];
      let weight = s[h * 256u + p - p0] * bitcast<f32>(vs[V_SCALES + kv * V_ROWS + row]);
      acc += weight * vec4f(bitcast<vec4<i32>>(vec4<u32>(c << 24u, c << 16u, c << 8u, c)) >>
                            vec4<u32>(24u));
    }
  }
  add_slices(i, words, slices, acc, h * D + 4u * j, 1u, 4u);
}

// Positions first..end-1, f16 rows, eight values a vector.
fn accum_f16(i: u32, h: u32, kv: u32, p0: u32, first: u32, end: u32) {
  let words = D / 8u;
  let slices = 256u / words;
  let j = i % words;
  var x = vec4f();
  var y = vec4f();
  if (i < slices * words) {
    for (var p = first + i / words; p < end; p += slices) {
      let c = v4[(kv * V_ROWS + p) * words + j];
      let weight = s[h * 256u + p - p0];
      x += weight * vec4f(unpack2x16float(c.x), unpack2x16float(c.y));
      y += weight * vec4f(unpack2x16float(c.z), unpack2x16float(c.w));
    }
  }
  add_slices(i, words, slices, x, h * D + 8u * j, 1u, 4u);
  add_slices(i, words, slices, y, h * D + 8u * j + 4u, 1u, 4u);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) i: u32) {
  let head = wg.x * HEADS_WG;
  let kv = head / GROUP;
  let span = wg.y;
  let pos = step[1];
  let records = step[2];
  let p0 = span * 256u;
  let p = p0 + i;
  var first = p0;
  if (VISIBLE > 0u && pos + 1u > VISIBLE) { first = max(first, pos + 1u - VISIBLE); }
  let end = min(pos + 1u, p0 + 256u);
  for (var j = i; j < HEADS_WG * D; j += 256u) { out[j] = 0.0; }
  if (p >= first && p < end) {
    if (K_TYPE == 0u) {
      score_f16(i, head, kv, p);
    } else if (K_TYPE == 1u) {
      score_q8(i, head, kv, p);
    } else if (as_record(K_TYPE, p, records)) {
      score_record(i, head, kv, p);
    } else {
      score_q8(i, head, kv, recent_row(p, records));
    }
  }
  workgroupBarrier();
  softmax(i, head, span, p0, first, end);
  workgroupBarrier();
  let begin = max(first, min(SINKS, records)); // records of values
  let to = min(end, records);
  if (V_TYPE >= 3u && begin < to) {
    if (p >= begin && p < to) {
      let rms = kv_rms(scale_byte(false, V_RECORDS + (kv * CONTEXT + p) * record_words()));
      let unit = select(rms * (1.0 / 1.40), rms * (0.25 / 1.38), V_TYPE == 3u);
      for (var h = 0u; h < HEADS_WG; h++) { s[h * 256u + i] *= unit; }
    }
    workgroupBarrier();
    for (var h = 0u; h < HEADS_WG; h++) { accum_records(i, h, kv, p0, begin, to); }
  }
  if (V_TYPE == 0u) {
    for (var h = 0u; h < HEADS_WG; h++) { accum_f16(i, h, kv, p0, first, end); }
  } else if (V_TYPE == 1u || first < begin || end > to) {
    for (var h = 0u; h < HEADS_WG; h++) { accum_q8(i, h, kv, p0, first, end, records); }
  }
  workgroupBarrier();
  for (var j = i; j < HEADS_WG * D; j += 256u) {
    partial[((head + j / D) * SPANS + span) * (D + 4u) + j % D] = out[j];
  }
}
