// quant_t.wgsl - int8 codes of a rotated row with one scale, in quads, as quantize_t() of
// kern/trellis_scalar.c, for rows that rotate.wgsl cannot hold whole. One workgroup of 256.
override N: u32;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> q: array<u32>;
@group(0) @binding(2) var<storage, read_write> groups: array<vec2u>;
var<workgroup> tops: array<u32, 256>;
var<workgroup> sums: array<i32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) i: u32) {
  var top = 0u;
  for (var j = i; j < N; j += 256u) { top = max(top, magnitude(x[j])); }
  tops[i] = top;
  workgroupBarrier();
  for (var h = 128u; h > 0u; h >>= 1u) {
    if (i < h) { tops[i] = max(tops[i], tops[i + h]); }
    workgroupBarrier();
  }
  top = tops[0];
  var inverse = 0.0;
  if (top > 0u && top < INFINITE) {
    inverse = min(divide(127.0, bitcast<f32>(top)), 3.4028234e38);
  }
  var sum = 0;
  let quads = N / 4u;
  for (var j = i; j < quads; j += 256u) {
    var c = vec4<i32>();
    if (top < INFINITE) {
      let v = vec4f(x[j], x[j + quads], x[j + 2u * quads], x[j + 3u * quads]);
      c = vec4<i32>(round(v * inverse));
    }
    q[j] = pack4(c);
    sum += c.x + c.y + c.z + c.w;
  }
  sums[i] = sum;
  workgroupBarrier();
  for (var h = 128u; h > 0u; h >>= 1u) {
    if (i < h) { sums[i] += sums[i + h]; }
    workgroupBarrier();
  }
  if (i == 0u) {
    var scale = bitcast<f32>(top);
    if (top < INFINITE) { scale = divide(scale, 127.0); }
    groups[0] = vec2u(bitcast<u32>(scale), bitcast<u32>(sums[0]));
  }
}
