// records.wgsl - reading k2 and k3 records. Matches value_x(), unit_of() of kern/kv_scalar.c.
const rms_steps = array<f32, 16>(1.0, 1.04427378, 1.09050773, 1.13878863, 1.18920712, 1.24185781,
    1.29683955, 1.35425555, 1.41421356, 1.47682615, 1.54221083, 1.61049033, 1.68179283, 1.75625216,
    1.83400809, 1.91520656);

fn kv_rms(b: u32) -> f32 {
  if (b == 0u) { return 0.0; }
  var steps = rms_steps;
  return steps[b & 15u] * bitcast<f32>(((b >> 4u) + 119u) << 23u);
}

// Step whose code byte has bit g of the scale byte as its bit 7.
fn scale_step(g: u32, d: u32) -> u32 {
  return (2u * g + 1u) * (d / 4u) / 16u;
}

// u of the four lanes: 4..12 (k2), value u - 8; 0..31 (k3), value (2u - 31) / 4, bit 0 of each byte of
// `minus` being the signs.
fn lanes_of(state: u32, kind: u32, minus: u32) -> u32 {
  return lanes_of_product(state * T4_MUL, kind, minus);
}
fn lanes_of_product(product: u32, kind: u32, minus: u32) -> u32 {
  let z = t4_nibbles(product);
  let p = (z + (z >> 4u)) & 0x0F0F0F0Fu;
  if (kind == 4u) { return p; }
  return (2u * p - 0x01010101u) ^ ((minus & 0x01010101u) * 31u);
}
// The logarithm to base 2 of what one of u or a fourth of it stands for, where b is not 0.
fn log_unit(b: u32, kind: u32) -> f32 {
  return f32(b) * (1.0 / 16.0) - select(8.48542683, 10.4646683, kind == 3u);
}
