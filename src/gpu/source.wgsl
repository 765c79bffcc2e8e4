// source.wgsl - what quant.wgsl and rotate.wgsl read. SRC: 0 a itself; 1 RMSNorm of a with the weights
// b, as rmsnorm() of kern/float_scalar.c; 2 SwiGLU of gate a and up b, as swiglu() there; 3 the output
// of attention where it is a single span: head after head of what attend.wgsl wrote, HEAD values
// EACH apart, both multiples of 4. The file behind declares part, of 256 or more f32 in workgroup memory.
override N: u32;
override SRC: u32 = 0u;
override EPS: f32 = 0.0;
override HEAD: u32 = 1u;
override EACH: u32 = 1u;
@group(0) @binding(0) var<storage, read> a: array<vec4f>;
@group(0) @binding(1) var<storage, read> b: array<vec4f>;
var<private> token: u32; // whose vectors are read and written

// The token's vector of a buffer of vec4f.
fn slot() -> u32 { return token * (STEP / 4u); }

// 1 / sqrt(mean of squares + eps), by all 256 invocations.
fn inverse_root(i: u32) -> f32 {
  var s = 0.0;
  for (var j = i; j < N / 4u; j += 256u) {
    let x = a[slot() + j];
    s += dot(x, x);
  }
  if (i == 0u) {
    for (var k = 0u; k < N % 4u; k++) {
      let x = a[slot() + N / 4u][k];
      s += x * x;
    }
  }
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

// Values 4j to 4j + 3; those from N on are 0.
fn source(j: u32, r: f32) -> vec4f {
  var x = vec4f();
  if (4u * j < N) {
    if (SRC == 3u) {
      let at = 4u * j / HEAD * EACH;
      x = a[(at + 4u * j % HEAD) / 4u] / a[(at + HEAD) / 4u].y;
    } else {
      x = a[slot() + j];
      let y = b[select(j, slot() + j, SRC == 2u)];
      if (SRC == 1u) { x = x * r * y; }
      if (SRC == 2u) { x = x / (1.0 + exp(min(-x, vec4f(88.0)))) * y; }
    }
  }
  if (4u * j + 4u > N) {
    return select(vec4f(), x, vec4<u32>(4u * j) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(N));
  }
  return x;
}
