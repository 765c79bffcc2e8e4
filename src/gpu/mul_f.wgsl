// mul_f.wgsl - units of f32 (4 inputs), f16 and bf16 (8): one vector. KIND: 0 f32, 1 f16, 2 bf16.
// Matches mul_f32(), mul_f16(), mul_bf16() of kern/float_scalar.c but for the order of the sum.
override KIND: u32;
@group(0) @binding(2) var<storage, read> x: array<vec4f>;

fn pair(c: u32) -> vec2f {
  if (KIND == 1u) { return unpack2x16float(c); }
  return vec2f(bitcast<f32>(c << 16u), bitcast<f32>(c & 0xffff0000u));
}

struct Unit { c: vec4<u32> }

fn unit_load(at: u32, r: u32) -> Unit { return Unit(w[at * 16u + r]); }

fn unit_dot(unit: Unit, u: u32, token: u32) -> f32 {
  let c = unit.c;
  let at = token * (STEP / 4u);
  if (KIND == 0u) { return dot(bitcast<vec4f>(c), x[at + u]); }
  return dot(vec4f(pair(c.x), pair(c.y)), x[at + 2u * u]) +
         dot(vec4f(pair(c.z), pair(c.w)), x[at + 2u * u + 1u]);
}

fn row_scale(row: u32) -> f32 { return 1.0; }
fn read_input(i: u32) {}
fn input_factor() -> f32 { return 1.0; }
