// mul_t.wgsl - y = W x (or +=) of t2 and t3 for one token. Row blocks of 128; in each, chunks of four
// tiles of codes: invocation g of 32 has a vector, word j being the bytes of rows 4g..4g+3 in tile j of
// the chunk. t3: a vec2 of signs besides, 16 bits a tile. A workgroup has GROUPS_WG row groups of four
// and SLICES slices of the chunks. Matches mul() of kern/trellis_scalar.c bit for bit.
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
var<workgroup> part: array<vec4<i32>, GROUPS_WG * SLICES>;

fn t3_lanes(x: u32, s: u32) -> u32 {
  return ((((x + (x >> 4u)) & 0x0f0f0f0fu) * 2u - 0x01010101u)) ^ minus31(s);
}

struct Sums { all: vec4<i32>, low: vec4<i32> } // of four rows

// t2: the products with both nibbles and with the lower ones, from which main() takes apart what belongs
// together: one operation less than adding the nibbles of each state.
fn tile_dot(c: u32, before: u32, s: u32, a: u32) -> Sums {
  let d = (c << 8u) | (before >> 24u);
  let x3 = (c >> 16u) * T4_MUL; // of the states in the upper halves; the lower ones' products are what
  let x2 = (d >> 16u) * T4_MUL; // is left without these: multiplications, which have units of their own
  let p = vec4<u32>(t4_nibbles(d * T4_MUL + x2 * 0xffff0000u), t4_nibbles(c * T4_MUL + x3 * 0xffff0000u),
                    t4_nibbles(x2), t4_nibbles(x3));
  if (BITS == 3u) {
    let u = vec4<u32>(t3_lanes(p.x, s), t3_lanes(p.y, s >> 4u), t3_lanes(p.z, s >> 8u),
                      t3_lanes(p.w, s >> 12u));
    return Sums(vec4<i32>(idot(u.x, a), idot(u.y, a), idot(u.z, a), idot(u.w, a)), vec4<i32>());
  }
  let l = p & vec4<u32>(0x0f0f0f0fu);
  return Sums(vec4<i32>(idot(p.x, a), idot(p.y, a), idot(p.z, a), idot(p.w, a)),
              vec4<i32>(idot(l.x, a), idot(l.y, a), idot(l.z, a), idot(l.w, a)));
}

@compute @workgroup_size(GROUPS_WG, SLICES)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_id) id: vec3u) {
  let group = wg.x * GROUPS_WG + id.x;
  let block = group / 32u;
  let g = group % 32u;
  let last = min(31u, (ROWS + 63u) / 64u * 16u - block * 32u - 1u); // of the block; it may have 64 rows
  var all = vec4<i32>();
  var low = vec4<i32>();
  for (var k = id.y; k < CHUNKS; k += SLICES) {
    let at = (block * CHUNKS + k) * 32u;
    let c = w[at + g];
    var n = w[at + select(g - 1u, last, g == 0u)];
    if (g == 0u) { // the state of a tile's first row goes on from the tile before
      var e = 0u;
      if (k > 0u) { e = w[at - 32u + last].w; }
      n = vec4<u32>(e, n.x, n.y, n.z);
    }
    var s = vec2u();
    if (BITS == 3u) { s = signs[at + g]; }
    let a = q[k];
    let t = array<Sums, 4>(tile_dot(c.x, n.x, s.x, a.x), tile_dot(c.y, n.y, s.x >> 16u, a.y),
                           tile_dot(c.z, n.z, s.y, a.z), tile_dot(c.w, n.w, s.y >> 16u, a.w));
    all += t[0].all + t[1].all + t[2].all + t[3].all;
    low += t[0].low + t[1].low + t[2].low + t[3].low;
  }
  if (BITS == 2u) { all = low + ((all - low) >> vec4<u32>(4u)); } // low + 16 high to low + high
  part[id.y * GROUPS_WG + id.x] = all;
  workgroupBarrier();
  for (var h = SLICES / 2u; h > 0u; h >>= 1u) {
    if (id.y < h) { part[id.y * GROUPS_WG + id.x] += part[(id.y + h) * GROUPS_WG + id.x]; }
    workgroupBarrier();
  }
  if (id.y != 0u) { return; }
  let info = groups[0];
  let asum = bitcast<i32>(info.y);
  var total = part[id.x];
  if (BITS == 3u) { total = total * 2 - vec4<i32>(31 * asum); } else { total -= vec4<i32>(8 * asum); }
  for (var j = 0u; j < 4u; j++) {
    let row = group * 4u + j;
    if (row < ROWS) {
      let scale = row_scales[row] * select(1.0, 0.5, BITS == 3u);
      let v = bitcast<f32>(info.x) * scale * f32(total[j]);
      if (ADD == 1u) { y[AT + row] += v; } else { y[AT + row] = v; }
    }
  }
}
