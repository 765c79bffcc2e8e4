// encode.wgsl - the records of a block of 16 positions from their q8 rows, from position step[2] - 1 on:
// workgroup (x, y) of 256 has KV head x and the y-th of them. It is the
// beam search of kv23.c (search(), kv_luts, kv_step, trace_back) with a survivor's parent kept, and
// store(). An invocation tries one next byte. step[2] = 0: nothing to do.
override D: u32;
override KIND: u32; // K3 3, K2 4
override KEYS: u32; // 1: rows lie as keys do
override ROWS: u32;
override SCALES: u32;
override RECORDS: u32;
override SIGNS: u32;
override CONTEXT: u32; // a multiple of 16
override SINKS: u32;
override WINDOW: u32;
const BEAM = 8u;
@group(0) @binding(0) var<storage, read> step: array<u32>;
@group(0) @binding(1) var<storage, read> weights: array<vec4f>; // of the lanes' errors, by head
@group(0) @binding(2) var<storage, read_write> rows: array<atomic<u32>>;
var<workgroup> x: array<f32, 256>; // in the order of records: lane i of step t at 4t + i
var<workgroup> lut: array<u32, 768>;    // (step, lane, 3): costs of p = 0..8, a byte each
var<workgroup> trace: array<u32, 1040>; // (step, 16) survivors: state | parent << 8
var<workgroup> pairs: array<u32, 202>;  // make_pairs()
var<workgroup> beam: array<vec2u, 16>;  // survivors: state times T4_MUL, cost
var<workgroup> n_at: array<atomic<u32>, 64>;
var<workgroup> alive: array<atomic<u32>, 8>;
var<workgroup> least: array<atomic<u32>, 4>; // four, so that fewer wait for each other
var<workgroup> limit: vec2u; // the most that a survivor costs above the least; how many there are
var<workgroup> code: array<u32, 64>;
const borders = array<f32, 16>(1.02189715, 1.06714040, 1.11438674, 1.16372486, 1.21524736,
    1.26905096, 1.32523664, 1.38390988, 1.44518081, 1.50916443, 1.57598085, 1.64575548, 1.71861930,
    1.79470908, 1.87416763, 1.95714412);

fn scale_byte_of(rms: f32) -> u32 {
  let u = bitcast<u32>(rms);
  if (u == 0u) { return 0u; }
  let m = bitcast<f32>((u & 0x7fffffu) | 0x3f800000u);
  var b = borders;
  var k = 0;
  while (k < 16 && m >= b[min(k, 15)]) { k++; }
  return u32(clamp(16 * (i32(u >> 23u) - 127) + k + 128, 0, 255));
}

fn row_word(head: u32, row: u32, j: u32) -> u32 {
  if (KEYS == 0u) { return atomicLoad(&rows[(head * ROWS + row) * (D / 4u) + j]); }
  return atomicLoad(
      &rows[(((head * ROWS + row) / 16u * (D / 16u) + j / 4u) * 16u + row % 16u) * 4u + j % 4u]);
}

// Costs of lane i of step t as 4t + i: x less each value, squared, in 1/8 or 1/16, at most 63.
fn make_lut(k: u32, inverse: f32, weight: f32) {
  var w = x[k] * inverse;
  if (KIND == 3u) { w = abs(w); }
  w = clamp(w, -16.0, 16.0);
  var f: array<f32, 12>;
  var low = 1e9;
  for (var p = 0u; p < 9u; p++) {
    var e = w - (f32(p) - 4.0);
    if (KIND == 3u) { e = w - abs(f32(p) - 4.25); }
    f[p] = e * e;
    low = min(low, f[p]);
  }
  for (var j = 0u; j < 3u; j++) {
    var word = 0u;
    for (var b = 0u; b < 4u; b++) {
      var c = 63u;
      let cost = (f[4u * j + b] - low) * (select(8.0, 16.0, KIND == 3u) * weight);
      if (4u * j + b < 9u && cost < 63.0) { c = u32(cost + 0.5); }
      word |= c << (8u * b);
    }
    lut[3u * k + j] = word;
  }
}

// Costs of lanes 0 and 1, of lanes 2 and 3 of step t together: of 9p + p' + 40, of 81 more.
fn make_pairs(i: u32, t: u32) {
  if (i >= 162u) { return; }
  let k = 4u * t + i / 81u * 2u;
  let p = i % 81u / 9u;
  let q = i % 9u;
  pairs[i + 40u] = ((lut[3u * k + p / 4u] >> (8u * (p % 4u))) & 255u) +
                   ((lut[3u * k + 3u + q / 4u] >> (8u * (q % 4u))) & 255u);
}

// One step: survivors of step t + 1 from the n of step t. half: 0 or 1 where a bit of the scale
// stands in the byte, else 2. Returns their number.
fn advance(i: u32, t: u32, n: u32, half: u32) -> u32 {
  var key = 0xffffffffu; // cost and survivor: of equal ones the first
  for (var k = 0u; k < n; k++) {
    let z = t4_nibbles(beam[k].x + (i << 8u) * T4_MUL);
    let u = (z + (z >> 4u)) & 0x0F0F0F0Fu; // p + 4
    let c = pairs[idot(u, 0x0109u)] + pairs[idot(u, 0x01090000u) + 81] + beam[k].y;
    key = min(key, 16u * c + k);
  }
  let best = min(key >> 4u, 255u);
  let allowed = half == 2u || (i >> 7u) == half;
  if (allowed) { atomicMin(&least[i / 8u % 4u], best); }
  workgroupBarrier();
  let lowest = min(min(atomicLoad(&least[0]), atomicLoad(&least[1])),
                   min(atomicLoad(&least[2]), atomicLoad(&least[3])));
  let above = best - min(best, lowest);
  if (allowed && above < 64u) { atomicAdd(&n_at[above], 1u); }
  if (i < 8u) { atomicStore(&alive[i], 0u); }
  if (4u * t + 4u < D) { make_pairs(i, t + 1u); }
  workgroupBarrier();
  if (i < 4u) { atomicStore(&least[i], 255u); }
  if (i == 0u) { // the least bound that BEAM of them do not exceed, 63 where there is none
    var below = 0u;
    var l = 0u;
    while (true) {
      let a = atomicLoad(&n_at[l]);
      let b = atomicLoad(&n_at[l + 1u]) + a;
      let c = atomicLoad(&n_at[l + 2u]) + b;
      let d = atomicLoad(&n_at[l + 3u]) + c;
      if (below + d < BEAM && l < 60u) {
        below += d;
        l += 4u;
        continue;
      }
      if (below + a >= BEAM) {
        below += a;
      } else if (below + b >= BEAM) {
        below += b;
        l += 1u;
      } else if (below + c >= BEAM) {
        below += c;
        l += 2u;
      } else {
        below += d;
        l += 3u;
      }
      break;
    }
    limit = vec2u(l, below);
  }
  workgroupBarrier();
  let bound = limit;
  let lives = allowed && above <= bound.x;
  if (lives) { atomicOr(&alive[i / 32u], 1u << (i % 32u)); }
  if (i < 64u) { atomicStore(&n_at[i], 0u); }
  workgroupBarrier();
  if (lives) {
    var rank = countOneBits(atomicLoad(&alive[i / 32u]) & ((1u << (i % 32u)) - 1u));
    for (var k = 0u; k < i / 32u; k++) { rank += countOneBits(atomicLoad(&alive[k])); }
    if (rank < 2u * BEAM) {
      trace[16u * (t + 1u) + rank] = i | ((key & 15u) << 8u);
      beam[rank] = vec2u(i * T4_MUL, above);
    }
  }
  workgroupBarrier();
  return min(bound.y, 2u * BEAM);
}

// Bits of a word, of which others belong to other records.
fn put_bits(at: u32, mask: u32, bits: u32) {
  atomicAnd(&rows[at], ~mask);
  atomicOr(&rows[at], bits);
}

// The signs of step t, bit 8i for lane i: set where x has the other sign than p - 4.25.
fn signs_of(t: u32) -> u32 {
  var before = 0u;
  if (t > 0u) { before = code[t - 1u]; }
  let u = t4(before | (code[t] << 8u));
  var s = 0u;
  for (var l = 0u; l < 4u; l++) {
    let minus = (x[4u * t + l] < 0.0) != (((u >> (8u * l)) & 255u) < 5u);
    s |= select(0u, 1u, minus) << (8u * l);
  }
  return s;
}

fn store_key(i: u32, row: u32) {
  if (i < D / 16u) {
    let c = 4u * i;
    let at = (row / 16u * ((D + 63u) / 64u) + i / 4u) * 16u + row % 16u;
    atomicStore(&rows[RECORDS + 4u * at + i % 4u], code[c] | (code[c + 1u] << 8u) |
                                                    (code[c + 2u] << 16u) | (code[c + 3u] << 24u));
  }
  if (KIND == 3u && i < D / 32u) {
    var word = 0u;
    for (var e = 0u; e < 8u; e++) { word |= signs_of(8u * i + e) << e; }
    atomicStore(&rows[SIGNS + (row / 16u * (D / 32u) + i) * 16u + row % 16u], word);
  }
}

fn store_value(t: u32, row: u32) {
  if (t >= D / 4u) { return; }
  let at = row / 16u * (D / 4u) + t;
  let r = row % 16u;
  put_bits(RECORDS + 4u * at + r / 4u, 255u << (8u * (r % 4u)), code[t] << (8u * (r % 4u)));
  if (KIND == 3u) {
    put_bits(SIGNS + 2u * at + r / 8u, 0x01010101u << (r % 8u), signs_of(t) << (r % 8u));
  }
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) i: u32) {
  if (step[2] == 0u) { return; }
  let p = step[2] - 1u + wg.y;
  if (p / 16u != (step[2] - 1u) / 16u) { return; }
  let head = wg.x;
  let row = SINKS + p % WINDOW;
  let nb = D / 4u;
  var scale = bitcast<f32>(atomicLoad(&rows[SCALES + head * ROWS + row]));
  if (magnitude(scale) >= INFINITE) { scale = 0.0; }
  if (i < D) {
    let c = bitcast<i32>(row_word(head, row, i / 4u) << (24u - 8u * (i % 4u))) >> 24u;
    x[i] = f32(c) * scale;
  }
  if (i < 64u) { code[i] = 0u; }
  workgroupBarrier();
  var sum = 0.0;
  for (var j = 0u; j < D; j++) { sum += x[j] * x[j]; }
  let b = scale_byte_of(sqrt(sum / f32(D)));
  let inverse = select(1.40, 1.38, KIND == 3u) / kv_rms(max(b, 1u));
  if (i < D) { make_lut(i, inverse, weights[head % arrayLength(&weights)][i % 4u]); }
  if (i < 4u) { atomicStore(&least[i], 255u); }
  workgroupBarrier();
  make_pairs(i, 0u); // beam begins with state 0 at no cost
  workgroupBarrier();
  var n = 1u;
  for (var t = 0u; t < nb; t++) {
    var half = 2u;
    for (var g = 0u; g < 8u; g++) {
      if (scale_step(g, D) == t) { half = (b >> g) & 1u; }
    }
    n = advance(i, t, n, half);
  }
  if (i == 0u && b > 0u) {
    var best = 0u;
    for (var k = 1u; k < n; k++) {
      if (beam[k].y < beam[best].y) { best = k; }
    }
    for (var t = nb; t > 0u; t--) {
      let e = trace[16u * t + best];
      code[t - 1u] = e & 255u;
      best = e >> 8u;
    }
  }
  workgroupBarrier();
  if (KEYS == 1u) { store_key(i, head * CONTEXT + p); } else { store_value(i, head * CONTEXT + p); }
}
