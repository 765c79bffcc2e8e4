// turn_quant.wgsl - the last pass of trellis_rotate() of trellis23.c and quantize_t() of
// kern/trellis_scalar.c in one, for rows whose sets are small: SETS of 4 * FOURS values, SETS apart, first
// times +-FACTOR by the seed's signs. A workgroup of 256 has the whole row in registers, an
// invocation whole sets; value k is component k / FOURS of vector k % FOURS, so a vector is a quad of
// codes. SETS * FOURS is at most 4096.
override SETS: u32;
override FOURS: u32; // 1, 2, 4, 8 or 16
override SEED: u32;
override FACTOR: f32;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> q: array<u32>;
@group(0) @binding(2) var<storage, read_write> groups: array<vec2u>;
var<workgroup> part: array<u32, 256>;
alias Values = array<vec4f, 16>;

fn value(at: u32, j: u32) -> f32 { // the sign as a bit: see rotate.wgsl
  return bitcast<f32>(bitcast<u32>(x[at + j] * FACTOR) ^
                      (lowbias32(SEED + j * 0x9e3779b9u) & 0x80000000u));
}

fn set_of(i: u32, t: u32) -> u32 { return i + t / FOURS * 256u; }

fn step(v: ptr<function, Values>, h: u32) {
  if (h >= FOURS) { return; }
  for (var t = 0u; t < 16u; t++) {
    if ((t & h) == 0u) {
      let a = (*v)[t];
      let b = (*v)[t + h];
      (*v)[t] = a + b;
      (*v)[t + h] = a - b;
    }
  }
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) i: u32) {
  let at = wg.z * STEP;
  var v: Values;
  for (var t = 0u; t < 16u; t++) {
    let j = set_of(i, t) + t % FOURS * SETS;
    let far = FOURS * SETS;
    if (set_of(i, t) < SETS) {
      v[t] = vec4f(value(at, j), value(at, j + far), value(at, j + 2u * far),
                   value(at, j + 3u * far));
    }
  }
  step(&v, 1u);
  step(&v, 2u);
  step(&v, 4u);
  step(&v, 8u);
  var most = vec4<u32>();
  for (var t = 0u; t < 16u; t++) {
    let p = vec4f(v[t].x + v[t].y, v[t].x - v[t].y, v[t].z + v[t].w, v[t].z - v[t].w);
    v[t] = vec4f(p.xy + p.zw, p.xy - p.zw);
    most = max(most, bitcast<vec4<u32>>(v[t]) & vec4<u32>(0x7fffffffu));
  }
  part[i] = max(max(most.x, most.y), max(most.z, most.w));
  workgroupBarrier();
  for (var h = 128u; h > 0u; h >>= 1u) {
    if (i < h) { part[i] = max(part[i], part[i + h]); }
    workgroupBarrier();
  }
  let top = part[0];
  workgroupBarrier();
  var inverse = 0.0;
  if (top > 0u && top < INFINITE) { inverse = min(divide(127.0, bitcast<f32>(top)), 3.4028234e38); }
  var sum = vec4<i32>();
  for (var t = 0u; t < 16u; t++) {
    var c = vec4<i32>();
    if (top < INFINITE) { c = vec4<i32>(round(v[t] * inverse)); }
    if (set_of(i, t) < SETS) { q[at / 4u + set_of(i, t) + t % FOURS * SETS] = pack4(c); }
    sum += c; // zeros where there is no set
  }
  part[i] = bitcast<u32>(sum.x + sum.y + sum.z + sum.w);
  workgroupBarrier();
  for (var h = 128u; h > 0u; h >>= 1u) {
    if (i < h) { part[i] += part[i + h]; }
    workgroupBarrier();
  }
  if (i == 0u) {
    var scale = bitcast<f32>(top);
    if (top < INFINITE) { scale = divide(scale, 127.0); }
    groups[wg.z * (STEP / 32u)] = vec2u(bitcast<u32>(scale), part[0]);
  }
}
