// norm.wgsl - y = source of N values, 1024 of them a workgroup of 256: RMSNorm or SwiGLU alone, for
// weights that take their input as float. Matches rmsnorm() and swiglu() of kern/float_scalar.c.
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
var<workgroup> part: array<f32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) i: u32) {
  var r = 0.0;
  if (SRC == 1u) { r = inverse_root(i); }
  for (var k = 0u; k < 4u; k++) {
    let j = wg.x * 1024u + k * 256u + i;
    if (j < N) { y[j] = source(j, r); }
  }
}
