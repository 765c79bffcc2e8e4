// batch_t.wgsl - batch.wgsl of t2 and t3: the states of four rows in four tiles are made once for TOKENS
// vectors; workgroup (x, y) has these of x. Matches mul() of kern/trellis_scalar.c bit for bit.
const TOKENS = 8u; // GPU_TOGETHER

// u of four rows.
fn tile_lanes(c: u32, before: u32, s: u32) -> vec4<u32> {
  let p = tile_nibbles(c, before);
  if (BITS == 3u) { return t3_four(p, s); }
  return (p + (p >> vec4<u32>(4u))) & vec4<u32>(0x0f0f0f0fu);
}

fn store(id: vec3u, group: u32, token: u32, sums: vec4<i32>) {
  var v = sums;
  if (SLICES > 1u) {
    part[id.y * GROUPS_WG + id.x] = v;
    workgroupBarrier();
    for (var h = SLICES / 2u; h > 0u; h >>= 1u) {
      if (id.y < h) { part[id.y * GROUPS_WG + id.x] += part[(id.y + h) * GROUPS_WG + id.x]; }
      workgroupBarrier();
    }
    v = part[id.x];
    workgroupBarrier();
  }
  if (id.y == 0u) { put_group(group, token, v); }
}

@compute @workgroup_size(GROUPS_WG, SLICES)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_id) id: vec3u) {
  let first = wg.x * TOKENS;
  let group = wg.y * GROUPS_WG + id.x;
  var acc: array<vec4<i32>, TOKENS>;
  for (var k = id.y; k < CHUNKS; k += SLICES) {
    let h = load_chunk(group, k);
    let u0 = tile_lanes(h.c.x, h.before.x, h.s.x);
    let u1 = tile_lanes(h.c.y, h.before.y, h.s.x >> 16u);
    let u2 = tile_lanes(h.c.z, h.before.z, h.s.y);
    let u3 = tile_lanes(h.c.w, h.before.w, h.s.y >> 16u);
    for (var t = 0u; t < TOKENS; t++) {
      let a = q[(first + t) * (STEP / 16u) + k];
      acc[t] += dots(u0, a.x) + dots(u1, a.y) + dots(u2, a.z) + dots(u3, a.w);
    }
  }
  store(id, group, first, acc[0]); // by constants: else acc lies in memory
  store(id, group, first + 1u, acc[1]);
  store(id, group, first + 2u, acc[2]);
  store(id, group, first + 3u, acc[3]);
  store(id, group, first + 4u, acc[4]);
  store(id, group, first + 5u, acc[5]);
  store(id, group, first + 6u, acc[6]);
  store(id, group, first + 7u, acc[7]);
}
