// mul_q8.wgsl - units of q8: 64 inputs, four vectors of signed codes in order and a word of two f16
// scales. Matches mul_q8() of kern/scalar.c.
@group(0) @binding(2) var<storage, read> scales: array<u32>;

fn group_dot(c: vec4<u32>, e: vec4<u32>, g: u32) -> f32 {
  let a = q[2u * g];
  let b = q[2u * g + 1u];
  let s = idot(c.x, a.x) + idot(c.y, a.y) + idot(c.z, a.z) + idot(c.w, a.w) +
          idot(e.x, b.x) + idot(e.y, b.y) + idot(e.z, b.z) + idot(e.w, b.w);
  return bitcast<f32>(groups[g].x) * f32(s);
}

fn unit_dot(at: u32, r: u32, u: u32) -> f32 {
  let d = unpack2x16float(scales[at * 16u + r]);
  let i = at * 64u + r;
  return d.x * group_dot(w[i], w[i + 16u], 2u * u) +
         d.y * group_dot(w[i + 32u], w[i + 48u], 2u * u + 1u);
}

fn row_scale(row: u32) -> f32 { return 1.0; }
