// mul_t.wgsl - y = W x (or +=) of t2 and t3 for one token. Matches mul() of kern/trellis_scalar.c bit
// for bit.
struct Sums { all: vec4<i32>, low: vec4<i32> } // of four rows

// t2: the products with both nibbles and with the lower ones, from which main() takes apart what belongs
// together: one operation less than adding the nibbles of each state.
fn tile_dot(c: u32, before: u32, s: u32, a: u32) -> Sums {
  let p = tile_nibbles(c, before);
  if (BITS == 3u) { return Sums(dots(t3_four(p, s), a), vec4<i32>()); }
  return Sums(dots(p, a), dots(p & vec4<u32>(0x0f0f0f0fu), a));
}

@compute @workgroup_size(GROUPS_WG, SLICES)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_id) id: vec3u) {
  let group = wg.x * GROUPS_WG + id.x;
  var all = vec4<i32>();
  var low = vec4<i32>();
  for (var k = id.y; k < CHUNKS; k += SLICES) {
    let h = load_chunk(group, k);
    let a = q[k];
    let t = array<Sums, 4>(tile_dot(h.c.x, h.before.x, h.s.x, a.x),
                           tile_dot(h.c.y, h.before.y, h.s.x >> 16u, a.y),
                           tile_dot(h.c.z, h.before.z, h.s.y, a.z),
                           tile_dot(h.c.w, h.before.w, h.s.y >> 16u, a.w));
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
  if (id.y == 0u) { put_group(group, 0u, part[id.x]); }
}
