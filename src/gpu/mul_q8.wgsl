// mul_q8.wgsl - units of q8: 64 inputs, four vectors of signed codes in order and a word of two f16
// scales. Matches mul_q8() of kern/scalar.c.
@group(0) @binding(2) var<storage, read> scales: array<u32>;

struct Unit { c: array<vec4<u32>, 4>, scale: vec2f }

fn unit_load(at: u32, r: u32) -> Unit {
  let i = at * 64u + r;
  return Unit(array<vec4<u32>, 4>(w[i], w[i + 16u], w[i + 32u], w[i + 48u]),
              unpack2x16float(scales[at * 16u + r]));
}

fn group_dot(c: vec4<u32>, e: vec4<u32>, g: u32, token: u32) -> f32 {
  let a = q[token * (STEP / 16u) + 2u * g];
  let b = q[token * (STEP / 16u) + 2u * g + 1u];
  let s = idot(c.x, a.x) + idot(c.y, a.y) + idot(c.z, a.z) + idot(c.w, a.w) +
          idot(e.x, b.x) + idot(e.y, b.y) + idot(e.z, b.z) + idot(e.w, b.w);
  return bitcast<f32>(groups[token * (STEP / 32u) + g].x) * f32(s);
}

fn unit_dot(unit: Unit, u: u32, token: u32) -> f32 {
  return unit.scale.x * group_dot(unit.c[0], unit.c[1], 2u * u, token) +
         unit.scale.y * group_dot(unit.c[2], unit.c[3], 2u * u + 1u, token);
}

fn row_scale(row: u32) -> f32 { return 1.0; }
