// merge.wgsl - the spans of attend.wgsl become the output of a head, one a workgroup of 128, turned
// back where values are kept rotated. Matches state_merge() and store() of attend.c within rounding.
override SPANS: u32;
override ROTATED: u32;
override FIRST: u32 = 0u; // sliding window in positions, 0: none
@group(0) @binding(0) var<storage, read> step: array<u32>;
@group(0) @binding(1) var<storage, read> partial: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
var<workgroup> part: array<f32, 128>;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) i: u32) {
  let n = step[1] / 256u + 1u;
  var first = 0u;
  if (FIRST > 0u && step[1] + 1u > FIRST) { first = (step[1] + 1u - FIRST) / 256u; }
  let at = wg.x * SPANS * (D + 4u);
  var top = -3.0e38;
  for (var e = first + i; e < n; e += 128u) { top = max(top, partial[at + e * (D + 4u) + D]); }
  part[i] = top;
  workgroupBarrier();
  for (var h = 64u; h > 0u; h >>= 1u) {
    if (i < h) { part[i] = max(part[i], part[i + h]); }
    workgroupBarrier();
  }
  top = part[0];
  var total = 0.0;
  var x = vec2f();
  for (var e = first; e < n; e++) {
    let b = at + e * (D + 4u);
    let f = exp(partial[b + D] - top);
    total += f * partial[b + D + 1u];
    if (i < D) { x.x += f * partial[b + i]; }
    if (i + 128u < D) { x.y += f * partial[b + i + 128u]; }
  }
  if (i < D) { v[i] = x.x / total; }
  if (i + 128u < D) { v[i + 128u] = x.y / total; }
  workgroupBarrier();
  if (ROTATED == 1u) { basis_out(i); }
  for (var j = i; j < D; j += 128u) { y[wg.x * D + j] = v[j]; }
}
