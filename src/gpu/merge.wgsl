// merge.wgsl - the spans of attend.wgsl become the output of a head, one a workgroup of 128, turned
// back where values are kept rotated. Matches state_merge() and store() of attend.c within rounding.
override SPANS: u32;
override ROTATED: u32;
override FIRST: u32 = 0u; // sliding window in positions, 0: none
@group(0) @binding(0) var<storage, read> step: array<u32>;
@group(0) @binding(1) var<storage, read> partial: array<vec4f>; // (D + 4) / 4 a span
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
var<workgroup> part: array<vec2f, 128>;
var<workgroup> all: array<vec4f, 128>;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) heads: vec3u,
        @builtin(local_invocation_index) i: u32) {
  let pos = step[0] + wg.z;
  let size = 256u * span_tiles(pos, SPANS);
  let n = pos / size + 1u;
  var first = 0u;
  if (FIRST > 0u && pos + 1u > FIRST) { first = (pos + 1u - FIRST) / size; }
  let at = (wg.z * heads.x + wg.x) * SPANS * (D + 4u);
  let columns = D / 4u;
  let slices = 128u / columns;
  var top = -3.0e38;
  var total = 0.0;
  var x = vec4f();
  if (i < slices * columns) {
    for (var e = first + i / columns; e < n; e += slices) {
      let b = (at + e * (D + 4u)) / 4u;
      let s = partial[b + columns];
      let t = max(top, s.x);
      let f = exp(s.x - t);
      let g = exp(top - t);
      total = total * g + f * s.y;
      x = x * g + f * partial[b + i % columns];
      top = t;
    }
  }
  all[i] = x;
  part[i] = vec2f(top, total);
  workgroupBarrier();
  if (i < columns) {
    for (var e = i; e < slices * columns; e += columns) { top = max(top, part[e].x); }
    total = 0.0;
    x = vec4f();
    for (var e = i; e < slices * columns; e += columns) {
      let f = exp(part[e].x - top);
      total += f * part[e].y;
      x += f * all[e];
    }
    x /= total;
    v[4u * i] = x.x;
    v[4u * i + 1u] = x.y;
    v[4u * i + 2u] = x.z;
    v[4u * i + 3u] = x.w;
  }
  workgroupBarrier();
  if (ROTATED == 1u) { basis_out(i); }
  for (var j = i; j < D; j += 128u) { y[wg.z * STEP + wg.x * D + j] = v[j]; }
}
