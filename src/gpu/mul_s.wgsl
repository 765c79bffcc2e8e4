// mul_s.wgsl - units of s2 and s3: 128 inputs, four groups. Two vectors of low code bits (words 2g and
// 2g+1 of a unit are the two of group g), for s3 one vector of third bits (word g), and a word of
// the four bytes c | z << 4. Matches mul_s() of kern/scalar.c.
override LEVELS: u32; // 4 or 8
override ROW_SCALES: u32; // where the f32 scales of the rows begin in cz
@group(0) @binding(2) var<storage, read> cz: array<u32>;

fn codes(c: u32, third: u32) -> vec4<u32> {
  let lo = vec4<u32>(c, c >> 2u, c >> 4u, c >> 6u) & vec4<u32>(0x03030303u);
  if (LEVELS == 4u) { return lo; }
  let bits = vec4<u32>(third, third >> 1u, third >> 2u, third >> 3u) & vec4<u32>(0x01010101u);
  return lo | (bits << vec4<u32>(2u));
}

fn group_dot(c: vec2u, third: u32, cz8: u32, g: u32, token: u32) -> f32 {
  let a = q[token * (STEP / 16u) + 2u * g];
  let b = q[token * (STEP / 16u) + 2u * g + 1u];
  let x = codes(c.x, third);
  let y = codes(c.y, third >> 4u);
  let s = idot(x.x, a.x) + idot(x.y, a.y) + idot(x.z, a.z) + idot(x.w, a.w) +
          idot(y.x, b.x) + idot(y.y, b.y) + idot(y.z, b.z) + idot(y.w, b.w);
  let info = groups[token * (STEP / 32u) + g];
  let z = i32((cz8 >> 4u) & 15u) - 4 - 4 * i32(LEVELS);
  return bitcast<f32>(info.x) * f32(i32((cz8 & 15u) + 4u) * (8 * s + z * bitcast<i32>(info.y)));
}

struct Unit { c: vec4<u32>, d: vec4<u32>, third: vec4<u32>, cz: u32 }

fn unit_load(at: u32, r: u32) -> Unit {
  let i = at * (LEVELS / 4u * 16u + 16u) + r; // 32 vectors a unit, 48 with third bits
  var t = vec4<u32>();
  if (LEVELS == 8u) { t = w[i + 32u]; }
  return Unit(w[i], w[i + 16u], t, cz[at * 16u + r]);
}

fn unit_dot(unit: Unit, u: u32, token: u32) -> f32 {
  let c = unit.c;
  let d = unit.d;
  let t = unit.third;
  let e = unit.cz;
  return group_dot(c.xy, t.x, e, 4u * u, token) + group_dot(c.zw, t.y, e >> 8u, 4u * u + 1u, token) +
         group_dot(d.xy, t.z, e >> 16u, 4u * u + 2u, token) +
         group_dot(d.zw, t.w, e >> 24u, 4u * u + 3u, token);
}

fn row_scale(row: u32) -> f32 { return bitcast<f32>(cz[ROW_SCALES + row]) * 0.125; }
