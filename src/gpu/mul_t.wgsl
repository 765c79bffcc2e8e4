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

fn tile_dot(c: u32, before: u32, s: u32, a: u32) -> vec4<i32> {
  var p = vec4<u32>(t4(((c << 8u) | (before >> 24u)) & 0xffffu), t4(c & 0xffffu),
                    t4((c >> 8u) & 0xffffu), t4(c >> 16u));
  if (BITS == 3u) {
    p = (p * 2u + vec4<u32>(0x07070707u)) ^
        vec4<u32>(minus31(s), minus31(s >> 4u), minus31(s >> 8u), minus31(s >> 12u));
  }
  return vec4<i32>(idot(p.x, a), idot(p.y, a), idot(p.z, a), idot(p.w, a));
}

@compute @workgroup_size(GROUPS_WG, SLICES)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_id) id: vec3u) {
  let group = wg.x * GROUPS_WG + id.x;
  let block = group / 32u;
  let g = group % 32u;
  let last = min(31u, (ROWS + 63u) / 64u * 16u - block * 32u - 1u); // of the block; it may have 64 rows
  var acc = vec4<i32>();
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
    acc += tile_dot(c.x, n.x, s.x, a.x) + tile_dot(c.y, n.y, s.x >> 16u, a.y) +
           tile_dot(c.z, n.z, s.y, a.z) + tile_dot(c.w, n.w, s.y >> 16u, a.w);
  }
  part[id.y * GROUPS_WG + id.x] = acc;
  workgroupBarrier();
  for (var h = SLICES / 2u; h > 0u; h >>= 1u) {
    if (id.y < h) { part[id.y * GROUPS_WG + id.x] += part[(id.y + h) * GROUPS_WG + id.x]; }
    workgroupBarrier();
  }
  if (id.y != 0u) { return; }
  let info = groups[0];
  let asum = bitcast<i32>(info.y);
  var total = part[id.x];
  if (BITS == 3u) { total = total * 2 - vec4<i32>(31 * asum); } else { total -= vec4<i32>(4 * asum); }
  for (var j = 0u; j < 4u; j++) {
    let row = group * 4u + j;
    if (row < ROWS) {
      let scale = row_scales[row] * select(1.0, 0.5, BITS == 3u);
      let v = bitcast<f32>(info.x) * scale * f32(total[j]);
      if (ADD == 1u) { y[AT + row] += v; } else { y[AT + row] = v; }
    }
  }
}
