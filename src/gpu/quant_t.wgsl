// quant_t.wgsl - int8 codes of a rotated row with one scale, in quads, as quantize_t() of
// kern/trellis_scalar.c, for rows that rotate.wgsl cannot hold whole. One workgroup of 256.
override N: u32;
@group(0) @binding(0) var<storage, read> x: array<vec4f>;
@group(0) @binding(1) var<storage, read_write> q: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> groups: array<vec2u>;
var<workgroup> tops: array<u32, 256>;
var<workgroup> sums: array<i32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) i: u32) {
  let slot = wg.z * (STEP / 4u);
  var top = 0u;
  for (var j = i; j < N / 4u; j += 256u) {
    let m = bitcast<vec4<u32>>(x[slot + j]) & vec4<u32>(0x7fffffffu);
    top = max(top, max(max(m.x, m.y), max(m.z, m.w)));
  }
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
  let fours = N / 16u; // four quads at a time; N is a multiple of 32
  for (var j = i; j < fours; j += 256u) {
    var c = array<vec4<i32>, 4>();
    if (top < INFINITE) {
      for (var k = 0u; k < 4u; k++) { c[k] = vec4<i32>(round(x[slot + j + k * fours] * inverse)); }
    }
    q[slot / 4u + j] = vec4<u32>(pack4(vec4<i32>(c[0].x, c[1].x, c[2].x, c[3].x)),
                     pack4(vec4<i32>(c[0].y, c[1].y, c[2].y, c[3].y)),
                     pack4(vec4<i32>(c[0].z, c[1].z, c[2].z, c[3].z)),
                     pack4(vec4<i32>(c[0].w, c[1].w, c[2].w, c[3].w)));
    let t = c[0] + c[1] + c[2] + c[3];
    sum += t.x + t.y + t.z + t.w;
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
    groups[wg.z * (STEP / 32u)] = vec2u(bitcast<u32>(scale), bitcast<u32>(sums[0]));
  }
}
