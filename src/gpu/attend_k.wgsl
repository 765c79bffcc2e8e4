// attend_k.wgsl - scores of one position, an invocation each, all heads of the workgroup: score_* of
// kern/.
override D: u32;
override HEADS_WG: u32;
override CONTEXT: u32; // records of a head, a multiple of 16
override K_TYPE: u32;
override K_ROWS: u32;
override K_SCALES: u32;
override K_RECORDS: u32; // where the records begin
override K_SIGNS: u32;
@group(0) @binding(1) var<storage, read> query: array<vec4<u32>>; // (D + 4) / 4 a head
@group(0) @binding(2) var<storage, read> k4: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> k1: array<u32>; // the same
const MOST_HEADS = 4u; // HEADS_WG is at most
var<private> score: array<f32, MOST_HEADS>;

fn query_at(head: u32) -> u32 { return head * (D + 4u) / 4u; }

fn dot16(a: vec4<u32>, b: vec4<u32>) -> i32 {
  return idot(a.x, b.x) + idot(a.y, b.y) + idot(a.z, b.z) + idot(a.w, b.w);
}

// Bits 31, 23, 15 or 7 of the words as a number of four bits.
fn four_bits(c: vec4<u32>, at: u32) -> u32 {
  let b = (c >> vec4<u32>(at)) & vec4<u32>(1u);
  return b.x | (b.y << 1u) | (b.z << 2u) | (b.w << 3u);
}

// The scale byte of a record whose vectors are at, at + 16 ..
fn key_scale(at: u32) -> u32 {
  if (D == 128u) { return four_bits(k4[at], 23u) | (four_bits(k4[at + 16u], 23u) << 4u); }
  var b = 0u;
  for (var g = 0u; g < 8u; g++) {
    let t = scale_step(g, D);
    let c = k1[4u * (at + t / 16u * 16u) + t / 4u % 4u];
    b |= ((c >> (8u * (t % 4u) + 7u)) & 1u) << g;
  }
  return b;
}

// The states of the four steps of a word times T4_MUL. Of two states in a word the product of the lower
// one is what is left without the upper's: work for the multiplier.
fn products(c: u32, before: u32) -> vec4<u32> {
  let d = (c << 8u) | (before >> 24u);
  let c1 = c >> 16u;
  let d1 = d >> 16u;
  return vec4<u32>(d * T4_MUL - d1 * T4_MUL_HIGH, c * T4_MUL - c1 * T4_MUL_HIGH, d1 * T4_MUL,
                   c1 * T4_MUL);
}

// u of the four steps of a word.
fn word_lanes(c: u32, before: u32, minus: u32) -> vec4<u32> {
  let p = products(c, before);
  return vec4<u32>(lanes_of_product(p.x, K_TYPE, minus), lanes_of_product(p.y, K_TYPE, minus >> 1u),
                   lanes_of_product(p.z, K_TYPE, minus >> 2u),
                   lanes_of_product(p.w, K_TYPE, minus >> 3u));
}

// k2 for one head: dots with both nibbles and with the lower ones, so that they need not be added.
fn nibble_dots(c: u32, before: u32, q: vec4<u32>) -> vec2<i32> {
  let p = products(c, before);
  let z = vec4<u32>(t4_nibbles(p.x), t4_nibbles(p.y), t4_nibbles(p.z), t4_nibbles(p.w));
  return vec2<i32>(dot16(z, q), dot16(z & vec4<u32>(0x0f0f0f0fu), q));
}

fn score_record(head: u32, kv: u32, p: u32) {
  let row = kv * CONTEXT + p;
  let at = row / 16u * ((D + 63u) / 64u) * 16u + row % 16u + K_RECORDS / 4u;
  let signs = row / 16u * (D / 32u) * 16u + row % 16u + K_SIGNS;
  var dots: array<i32, MOST_HEADS>;
  var both = vec2<i32>();
  var before = 0u;
  for (var j = 0u; j < D / 16u; j += 4u) { // a vector; what is behind the record has no query
    let c = k4[at + 4u * j];
    var sg = vec2u();
    if (K_TYPE == 3u) {
      sg.x = k1[signs + 8u * j];
      if (j + 2u < D / 16u) { sg.y = k1[signs + 8u * j + 16u]; }
    }
    if (K_TYPE == 4u && HEADS_WG == 1u) {
      let q = query_at(head) + j;
      both += nibble_dots(c.x, before, query[q]) + nibble_dots(c.y, c.x, query[q + 1u]);
      if (j + 2u < D / 16u) {
        both += nibble_dots(c.z, c.y, query[q + 2u]) + nibble_dots(c.w, c.z, query[q + 3u]);
      }
      before = c.w;
      continue;
    }
    let u = array<vec4<u32>, 4>(word_lanes(c.x, before, sg.x), word_lanes(c.y, c.x, sg.x >> 4u),
                                word_lanes(c.z, c.y, sg.y), word_lanes(c.w, c.z, sg.y >> 4u));
    before = c.w;
    for (var h = 0u; h < HEADS_WG; h++) {
      let q = query_at(head + h) + j;
      dots[h] += dot16(u[0], query[q]) + dot16(u[1], query[q + 1u]);
      if (j + 2u < D / 16u) { dots[h] += dot16(u[2], query[q + 2u]) + dot16(u[3], query[q + 3u]); }
    }
  }
  if (K_TYPE == 4u && HEADS_WG == 1u) { dots[0] = both.y + (both.x - both.y) / 16; }
  let b = key_scale(at);
  let unit = select(exp2(log_unit(b, K_TYPE)), 0.0, b == 0u);
  for (var h = 0u; h < HEADS_WG; h++) {
    let q = query[query_at(head + h) + D / 16u]; // scale, sum
    let sum = bitcast<i32>(q.y);
    let total = select(dots[h] - 8 * sum, 2 * dots[h] - 31 * sum, K_TYPE == 3u);
    score[h] = unit * bitcast<f32>(q.x) * f32(total);
  }
}

fn score_q8(head: u32, kv: u32, row: u32) {
  let at = (kv * K_ROWS + row) / 16u * (D / 16u) * 16u + row % 16u;
  let scale = bitcast<f32>(k1[K_SCALES + kv * K_ROWS + row]);
  var dots: array<i32, MOST_HEADS>;
  for (var j = 0u; j < D / 16u; j++) {
    let c = k4[at + 16u * j];
    for (var h = 0u; h < HEADS_WG; h++) { dots[h] += dot16(c, query[query_at(head + h) + j]); }
  }
  for (var h = 0u; h < HEADS_WG; h++) {
    score[h] = bitcast<f32>(query[query_at(head + h) + D / 16u].x) * scale * f32(dots[h]);
  }
}

fn score_f16(head: u32, kv: u32, row: u32) {
  let at = (kv * K_ROWS + row) / 16u * (D / 8u) * 16u + row % 16u;
  var dots: array<f32, MOST_HEADS>;
  for (var j = 0u; j < D / 8u; j++) {
    let c = k4[at + 16u * j];
    let x = vec4f(unpack2x16float(c.x), unpack2x16float(c.y));
    let y = vec4f(unpack2x16float(c.z), unpack2x16float(c.w));
    for (var h = 0u; h < HEADS_WG; h++) {
      let q = query_at(head + h) + 2u * j;
      dots[h] += dot(x, bitcast<vec4f>(query[q])) + dot(y, bitcast<vec4f>(query[q + 1u]));
    }
  }
  score = dots;
}

// Position p; those from `begin` to before `records` are records where the type has them.
fn score_position(head: u32, kv: u32, p: u32, begin: u32, records: u32) {
  if (K_TYPE == 0u) {
    score_f16(head, kv, p);
  } else if (K_TYPE == 1u) {
    score_q8(head, kv, p);
  } else if (p >= begin && p < records) {
    score_record(head, kv, p);
  } else {
    score_q8(head, kv, recent_row(p, begin));
  }
}
