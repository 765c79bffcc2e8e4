// attend_v.wgsl - weighted sums of the values of a tile of 256 positions: accum_* of kern/. An invocation
// has a column, which is the coordinates of one word, vector or step, and a slice of the positions.
override V_TYPE: u32;
override V_ROWS: u32;
override V_SCALES: u32;
override V_RECORDS: u32;
override V_SIGNS: u32;
@group(0) @binding(4) var<storage, read> vs: array<u32>;
@group(0) @binding(5) var<storage, read> v4: array<vec4<u32>>; // the same
override VECTORS: u32 = select(1u, 2u, V_TYPE == 0u); // of four coordinates a column
override COLUMNS: u32 = D / (4u * VECTORS);
override SLICES: u32 = 256u / COLUMNS;
// Weights of records, 14 bits as two of 7.
var<workgroup> pair: array<vec2<u32>, MOST_HEADS * 256u>;
var<workgroup> red: array<f32, 1024>; // weights of rows; what is added up at the end
var<private> acc: array<vec4f, MOST_HEADS>;
var<private> acc_high: array<vec4f, MOST_HEADS>; // where a column is eight coordinates
var<private> up: array<vec4<u32>, MOST_HEADS>;   // lanes 0 and 2 as two of 16 bits, lanes 1 and 3,
var<private> down: array<vec4<u32>, MOST_HEADS>; // of an even and of an odd position

// Scale bytes of the records of positions p to p + 3, p a multiple of 4.
fn value_scales(kv: u32, p: u32) -> u32 {
  let at = V_RECORDS + (kv * CONTEXT + p) / 16u * D + p % 16u / 4u;
  var b = 0u;
  for (var g = 0u; g < 8u; g++) {
    b |= ((vs[at + 4u * scale_step(g, D)] >> 7u) & 0x01010101u) << g;
  }
  return b;
}

// Of the product of a state and T4_MUL.
fn add_state(product: u32, p: u32, minus: u32) {
  var even: u32;
  var odd: u32;
  if (V_TYPE == 4u) {
    let z = t4_nibbles(product);
    let u = z + (z >> 4u);
    even = u & 0x000f000fu;
    odd = (u >> 8u) & 0x000f000fu;
  } else {
    let u = lanes_of_product(product, V_TYPE, minus);
    even = u & 0x00ff00ffu;
    odd = (u >> 8u) & 0x00ff00ffu;
  }
  for (var h = 0u; h < HEADS_WG; h++) {
    let w = pair[h * 256u + p];
    up[h].x += even * w.x;
    up[h].y += odd * w.x;
    down[h].x += even * w.y;
    down[h].y += odd * w.y;
  }
}

// The sums so far become floats, before 16 bits are full: values of at most 12 (k2) times 7 bits for
// 32 positions, of at most 31 (k3) for 16.
fn flush() {
  for (var h = 0u; h < HEADS_WG; h++) {
    let a = (up[h].xyxy >> vec4<u32>(0u, 0u, 16u, 16u)) & vec4<u32>(0xffffu);
    let b = (down[h].xyxy >> vec4<u32>(0u, 0u, 16u, 16u)) & vec4<u32>(0xffffu);
    acc[h] += vec4f(a * 128u + b);
    up[h] = vec4<u32>();
    down[h] = vec4<u32>();
  }
}

// Four positions from p on of a step, their code bytes c and those of the step before. States come in
// pairs; the product of the lower of two is that of both less that of the upper, work for the
// multiplier.
fn add_word(c: u32, before: u32, p: u32, minus: u32) {
  let even = (before & 0x00ff00ffu) | ((c & 0x00ff00ffu) << 8u);
  let odd = ((before >> 8u) & 0x00ff00ffu) | (c & 0xff00ff00u);
  let e = even >> 16u;
  let o = odd >> 16u;
  add_state(even * T4_MUL - e * T4_MUL_HIGH, p, minus);
  add_state(odd * T4_MUL - o * T4_MUL_HIGH, p + 1u, minus >> 1u);
  add_state(e * T4_MUL, p + 2u, minus >> 2u);
  add_state(o * T4_MUL, p + 3u, minus >> 3u);
}

// The tile's records; other positions have no weight in pair.
fn accum_records(i: u32, kv: u32, p0: u32) {
  let t = i % COLUMNS;
  for (var p = i / COLUMNS * 16u; p < 256u; p += 16u * SLICES) {
    let block = (kv * CONTEXT + p0 + p) / 16u;
    let at = block * COLUMNS + t + V_RECORDS / 4u;
    let c = v4[at];
    var before = vec4<u32>();
    if (t > 0u) { before = v4[at - 1u]; }
    var sg = vec2u();
    if (V_TYPE == 3u) {
      let signs = V_SIGNS + 2u * (block * COLUMNS + t);
      sg = vec2u(vs[signs], vs[signs + 1u]);
    }
    add_word(c.x, before.x, p, sg.x);
    add_word(c.y, before.y, p + 4u, sg.x >> 4u);
    add_word(c.z, before.z, p + 8u, sg.y);
    add_word(c.w, before.w, p + 12u, sg.y >> 4u);
    if (V_TYPE == 3u || SLICES < 8u) { flush(); }
  }
  if (V_TYPE == 4u) { flush(); }
}

// A q8 word or an f16 vector of position p of the tile.
fn add_q8(c: u32, p: u32) {
  let x = vec4f(bitcast<vec4<i32>>(vec4<u32>(c << 24u, c << 16u, c << 8u, c)) >> vec4<u32>(24u));
  for (var h = 0u; h < HEADS_WG; h++) { acc[h] += red[h * 256u + p] * x; }
}
fn add_f16(c: vec4<u32>, p: u32) {
  let x = vec4f(unpack2x16float(c.x), unpack2x16float(c.y));
  let y = vec4f(unpack2x16float(c.z), unpack2x16float(c.w));
  for (var h = 0u; h < HEADS_WG; h++) {
    let w = red[h * 256u + p];
    acc[h] += w * x;
    acc_high[h] += w * y;
  }
}

// Rows one after another, positions since..until-1 of the tile; of a full tile four are loaded at a
// time.
fn accum_rows(i: u32, kv: u32, p0: u32, since: u32, until: u32) {
  let at = (kv * V_ROWS + p0) * COLUMNS + i % COLUMNS;
  let slice = i / COLUMNS;
  if (256u % (4u * SLICES) == 0u && since == 0u && until == 256u) {
    for (var p = slice; p < 256u; p += 4u * SLICES) {
      let j = at + p * COLUMNS;
      if (V_TYPE == 0u) {
        let c = v4[j];
        let d = v4[j + SLICES * COLUMNS];
        let e = v4[j + 2u * SLICES * COLUMNS];
        let f = v4[j + 3u * SLICES * COLUMNS];
        add_f16(c, p);
        add_f16(d, p + SLICES);
        add_f16(e, p + 2u * SLICES);
        add_f16(f, p + 3u * SLICES);
      } else {
        let c = vs[j];
        let d = vs[j + SLICES * COLUMNS];
        let e = vs[j + 2u * SLICES * COLUMNS];
        let f = vs[j + 3u * SLICES * COLUMNS];
        add_q8(c, p);
        add_q8(d, p + SLICES);
        add_q8(e, p + 2u * SLICES);
        add_q8(f, p + 3u * SLICES);
      }
    }
    return;
  }
  for (var p = since + slice; p < until; p += SLICES) {
    if (V_TYPE == 0u) { add_f16(v4[at + p * COLUMNS], p); } else { add_q8(vs[at + p * COLUMNS], p); }
  }
}

// Those of the positions first..end-1 that are q8 rows beside records.
fn accum_recent(i: u32, kv: u32, p0: u32, first: u32, end: u32, begin: u32, records: u32) {
  for (var p = first + i / COLUMNS; p < end; p += SLICES) {
    if (p >= begin && p < records) { p += (records - 1u - p) / SLICES * SLICES; } else {
      add_q8(vs[(kv * V_ROWS + recent_row(p, begin)) * COLUMNS + i % COLUMNS], p - p0);
    }
  }
}

// Adds the tile's values to acc, in units of 1 / 16383 where they are records; acc of them lacks the
// offset of u.
fn accum(i: u32, kv: u32, p0: u32, first: u32, end: u32, begin: u32, records: u32) {
  if (i >= SLICES * COLUMNS) { return; }
  if (V_TYPE < 3u) {
    accum_rows(i, kv, p0, first - p0, end - p0);
    return;
  }
  if (max(first, begin) < min(end, records)) { accum_records(i, kv, p0); }
  if (first < begin || end > records) { accum_recent(i, kv, p0, first, end, begin, records); }
}
