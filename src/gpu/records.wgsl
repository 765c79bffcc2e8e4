// records.wgsl - reading k2 and k3 records: the codes of a head vector in order, 16 coordinates a word
// (RECORD words), for k3 then the sign nibbles of 8 steps a word apart. Matches value_x(), unit_of()
// of kern/kv_scalar.c.
const rms_steps = array<f32, 16>(1.0, 1.04427378, 1.09050773, 1.13878863, 1.18920712, 1.24185781,
    1.29683955, 1.35425555, 1.41421356, 1.47682615, 1.54221083, 1.61049033, 1.68179283, 1.75625216,
    1.83400809, 1.91520656);

fn kv_rms(b: u32) -> f32 {
  if (b == 0u) { return 0.0; }
  var steps = rms_steps;
  return steps[b & 15u] * bitcast<f32>(((b >> 4u) + 119u) << 23u);
}

// The states of the four steps of a word.
fn states(c: u32, before: u32) -> vec4<u32> {
  return vec4<u32>(((c << 8u) | (before >> 24u)) & 0xffffu, c & 0xffffu, (c >> 8u) & 0xffffu,
                   c >> 16u);
}

// u of the four lanes, 0..8 (k2) or 0..31 (k3, with the signs s).
fn lanes_of(state: u32, kind: u32, s: u32) -> u32 {
  let p = t4(state);
  if (kind == 4u) { return p; }
  return (2u * p + 0x07070707u) ^ minus31(s);
}
