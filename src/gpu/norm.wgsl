// norm.wgsl - y = source of N values and zeros to a multiple of 4, 1024 a workgroup of 256: RMSNorm or SwiGLU alone, for
// weights that take their input as float. Matches rmsnorm() and swiglu() of kern/float_scalar.c.
@group(0) @binding(2) var<storage, read_write> y: array<vec4f>;
var<workgroup> part: array<f32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) i: u32) {
  token = wg.z;
  var r = 0.0;
  if (SRC == 1u) { r = inverse_root(i); }
  let j = wg.x * 256u + i;
  if (4u * j < N) { y[slot() + j] = source(j, r); }
}
