// mul_int8.wgsl - inputs of int8 codes with groups of 32. With SQUARES they are those of x * weight, RMSNorm
// without its factor, and as many sums of squares of x lie behind the groups (mul_next.wgsl); what is
// left of RMSNorm is a factor of the product.
override SQUARES: u32 = 0u;
override INPUTS: u32 = 1u; // of the mean
override EPS: f32 = 0.0;
override SQUARES_AT: u32 = 0u; // in pairs
@group(0) @binding(3) var<storage, read> q: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read> groups: array<vec2u>; // f32 scale, sum of the codes
var<workgroup> squares: array<f32, 16>;

// By the first 16 invocations; a barrier follows before input_factor().
fn read_input(i: u32) {
  if (SQUARES == 0u || i >= 16u) { return; }
  var s = 0.0;
  for (var j = i; 2u * j < SQUARES; j += 16u) {
    let p = bitcast<vec2f>(groups[SQUARES_AT + j]);
    s += p.x + p.y;
  }
  squares[i] = s;
}

fn input_factor() -> f32 {
  if (SQUARES == 0u) { return 1.0; }
  var s = 0.0;
  for (var j = 0u; j < 16u; j++) { s += squares[j]; }
  return 1.0 / sqrt(s / f32(INPUTS) + EPS);
}
