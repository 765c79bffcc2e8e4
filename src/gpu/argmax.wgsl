// argmax.wgsl - the index of the largest of N logits, the lowest of equals, as sampler_next() at
// temperature 0; 0xffffffff where one of them is no number. Two runs: SECOND 0 finds those of 1024
// each a workgroup of 256, SECOND 1 of these the one. part is (value bits, index) pairs.
override N: u32;
override SECOND: u32;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> pairs: array<vec2u>;
@group(0) @binding(2) var<storage, read_write> best: array<u32>;
var<workgroup> part: array<vec2u, 256>;

fn better(p: vec2u, q: vec2u) -> vec2u {
  if (is_better(q, p)) { return q; }
  return p;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) i: u32) {
  var p = vec2u(0u, 0xffffffffu);
  if (SECOND == 0u) {
    for (var j = wg.x * 1024u + i; j < min(N, wg.x * 1024u + 1024u); j += 256u) {
      p = better(p, vec2u(key(x[j]), j));
    }
  } else {
    for (var j = i; j < (N + 1023u) / 1024u; j += 256u) { p = better(p, pairs[j]); }
  }
  part[i] = p;
  workgroupBarrier();
  for (var h = 128u; h > 0u; h >>= 1u) {
    if (i < h) { part[i] = better(part[i], part[i + h]); }
    workgroupBarrier();
  }
  if (i != 0u) { return; }
  if (SECOND == 0u) {
    pairs[wg.x] = part[0];
  } else {
    best[0] = select(part[0].y, 0xffffffffu, part[0].x == 0xffffffffu);
  }
}
