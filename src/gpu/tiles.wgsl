// tiles.wgsl - codes of t2 and t3. Row blocks of 128; in each, chunks of four tiles of codes: invocation
// g of 32 has a vector, word j being the bytes of rows 4g..4g+3 in tile j of the chunk. t3: a vec2 of
// signs besides, 16 bits a tile. A workgroup has GROUPS_WG row groups of four and SLICES slices of the
// chunks. The file behind has main().
override ROWS: u32;
override CHUNKS: u32; // inputs / 16
override GROUPS_WG: u32 = 8u;
override SLICES: u32 = 32u;
override ADD: u32 = 0u;
override AT: u32 = 0u; // of row 0 in y
override BITS: u32;
@group(0) @binding(0) var<storage, read_write> y: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> signs: array<vec2u>;
@group(0) @binding(3) var<storage, read> q: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read> groups: array<vec2u>;
@group(0) @binding(5) var<storage, read> row_scales: array<f32>;
var<workgroup> part: array<vec4<i32>, 256>; // at most; see mul.wgsl

struct Chunk { c: vec4<u32>, before: vec4<u32>, s: vec2u } // before: the word above each in its tile

fn load_chunk(group: u32, k: u32) -> Chunk {
  let block = group / 32u;
  let g = group % 32u;
  let last = min(31u, (ROWS + 63u) / 64u * 16u - block * 32u - 1u); // of the block; it may have 64 rows
  let at = (block * CHUNKS + k) * 32u;
  var n = w[at + select(g - 1u, last, g == 0u)];
  if (g == 0u) { // the state of a tile's first row goes on from the tile before
    var e = 0u;
    if (k > 0u) { e = w[at - 32u + last].w; }
    n = vec4<u32>(e, n.x, n.y, n.z);
  }
  var s = vec2u();
  if (BITS == 3u) { s = signs[at + g]; }
  return Chunk(w[at + g], n, s);
}

fn t3_lanes(x: u32, s: u32) -> u32 {
  return ((((x + (x >> 4u)) & 0x0f0f0f0fu) * 2u - 0x01010101u)) ^ minus31(s);
}

// u of four rows of t3, p from tile_nibbles().
fn t3_four(p: vec4<u32>, s: u32) -> vec4<u32> {
  return vec4<u32>(t3_lanes(p.x, s), t3_lanes(p.y, s >> 4u), t3_lanes(p.z, s >> 8u),
                   t3_lanes(p.w, s >> 12u));
}

// The products of four rows' codes with four inputs.
fn dots(u: vec4<u32>, a: u32) -> vec4<i32> {
  return vec4<i32>(idot(u.x, a), idot(u.y, a), idot(u.z, a), idot(u.w, a));
}

// t4_nibbles() of the states of four rows.
fn tile_nibbles(c: u32, before: u32) -> vec4<u32> {
  let d = (c << 8u) | (before >> 24u);
  let x3 = (c >> 16u) * T4_MUL; // of the states in the upper halves; the lower ones' products are what
  let x2 = (d >> 16u) * T4_MUL; // is left without these: multiplications, which have units of their own
  return vec4<u32>(t4_nibbles(d * T4_MUL + x2 * 0xffff0000u), t4_nibbles(c * T4_MUL + x3 * 0xffff0000u),
                   t4_nibbles(x2), t4_nibbles(x3));
}

// Row group `group` of y of a token, from the sums of its codes' products.
fn put_group(group: u32, token: u32, sums: vec4<i32>) {
  let info = groups[token * (STEP / 32u)];
  let asum = bitcast<i32>(info.y);
  var total = sums;
  if (BITS == 3u) { total = total * 2 - vec4<i32>(31 * asum); } else { total -= vec4<i32>(8 * asum); }
  for (var j = 0u; j < 4u; j++) {
    let row = group * 4u + j;
    if (row < ROWS) {
      let scale = row_scales[row] * select(1.0, 0.5, BITS == 3u);
      let v = bitcast<f32>(info.x) * scale * f32(total[j]);
      let at = token * STEP + AT + row;
      if (ADD == 1u) { y[at] += v; } else { y[at] = v; }
    }
  }
}
