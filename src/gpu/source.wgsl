// source.wgsl - what quant.wgsl and rotate.wgsl read. SRC: 0 a itself; 1 RMSNorm of a with the weights
// b, as rmsnorm() of kern/float_scalar.c; 2 SwiGLU of gate a and up b, as swiglu() there; 3 the output
// of attention where it is a single span: head after head of what attend.wgsl wrote, HEAD values
// EACH apart. The file behind declares part, of 256 or more f32 in workgroup memory.
override N: u32;
override SRC: u32 = 0u;
override EPS: f32 = 0.0;
override HEAD: u32 = 1u;
override EACH: u32 = 1u;
@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;

// 1 / sqrt(mean of squares + eps), by all 256 invocations.
fn inverse_root(i: u32) -> f32 {
  var s = 0.0;
  for (var j = i; j < N; j += 256u) { s += a[j] * a[j]; }
  part[i] = s;
  workgroupBarrier();
  for (var h = 128u; h > 0u; h >>= 1u) {
    if (i < h) { part[i] += part[i + h]; }
    workgroupBarrier();
  }
  let r = 1.0 / sqrt(part[0] / f32(N) + EPS);
  workgroupBarrier();
  return r;
}

fn source(j: u32, r: f32) -> f32 {
  if (SRC == 3u) {
    let at = j / HEAD * EACH;
    return a[at + j % HEAD] / a[at + HEAD + 1u];
  }
  let x = a[j];
  let y = b[j % arrayLength(&b)];
  if (SRC == 1u) { return x * r * y; }
  if (SRC == 2u) { return x / (1.0 + exp(min(-x, 88.0))) * y; }
  return x;
}
