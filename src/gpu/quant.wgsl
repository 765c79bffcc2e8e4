// quant.wgsl - int8 activations in groups of 32, as quantize() of kern/scalar.c: 1024 inputs a
// workgroup of 256, four an invocation. Inputs N..PAD-1 become zeros, PAD a multiple of 128.
override PAD: u32;
@group(0) @binding(2) var<storage, read_write> q: array<u32>;        // four codes
@group(0) @binding(3) var<storage, read_write> groups: array<vec2u>; // f32 scale, sum of the codes
var<workgroup> part: array<f32, 256>;
var<workgroup> tops: array<u32, 256>;
var<workgroup> sums: array<i32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) i: u32) {
  token = wg.z;
  var r = 0.0;
  if (SRC == 1u) { r = inverse_root(i); }
  let at = wg.x * 1024u + i * 4u;
  let x = source(at / 4u, r);
  tops[i] = max(max(magnitude(x.x), magnitude(x.y)), max(magnitude(x.z), magnitude(x.w)));
  workgroupBarrier();
  var top = 0u;
  for (var k = 0u; k < 8u; k++) { top = max(top, tops[(i & 0xf8u) + k]); }
  var c = vec4<i32>();
  if (top > 0u && top < INFINITE) {
    c = vec4<i32>(round(x * min(divide(127.0, bitcast<f32>(top)), 3.4028234e38)));
  }
  sums[i] = c.x + c.y + c.z + c.w;
  workgroupBarrier();
  if (at >= PAD) { return; }
  q[token * (STEP / 4u) + at / 4u] = pack4(c);
  if ((i & 7u) == 0u) {
    var s = 0;
    for (var k = 0u; k < 8u; k++) { s += sums[i + k]; }
    var scale = bitcast<f32>(top); // infinity or NaN stays what it is
    if (top < INFINITE) { scale = divide(scale, 127.0); }
    groups[token * (STEP / 32u) + at / 32u] = vec2u(bitcast<u32>(scale), bitcast<u32>(s));
  }
}
