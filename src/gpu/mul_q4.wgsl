// mul_q4.wgsl - units of q4: 64 inputs, two vectors of codes (word v of a vector: low nibbles inputs
// 8v..8v+3, high nibbles 8v+4..8v+7 of a group) and a word of two f16 scales. Matches mul_q4() of
// kern/scalar.c.
@group(0) @binding(2) var<storage, read> scales: array<u32>;

struct Unit { c: vec4<u32>, d: vec4<u32>, scale: vec2f }

fn unit_load(at: u32, r: u32) -> Unit {
  return Unit(w[at * 32u + r], w[at * 32u + 16u + r], unpack2x16float(scales[at * 16u + r]));
}

fn group_dot(c: vec4<u32>, g: u32, token: u32) -> f32 {
  let a = q[token * (STEP / 16u) + 2u * g];
  let b = q[token * (STEP / 16u) + 2u * g + 1u];
  let lo = c & vec4<u32>(0x0f0f0f0fu);
  let hi = (c >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu);
  let s = idot(lo.x, a.x) + idot(hi.x, a.y) + idot(lo.y, a.z) + idot(hi.y, a.w) +
          idot(lo.z, b.x) + idot(hi.z, b.y) + idot(lo.w, b.z) + idot(hi.w, b.w);
  let info = groups[token * (STEP / 32u) + g];
  return bitcast<f32>(info.x) * f32(s - 8 * bitcast<i32>(info.y));
}

fn unit_dot(unit: Unit, u: u32, token: u32) -> f32 {
  return unit.scale.x * group_dot(unit.c, 2u * u, token) +
         unit.scale.y * group_dot(unit.d, 2u * u + 1u, token);
}

fn row_scale(row: u32) -> f32 { return 1.0; }
