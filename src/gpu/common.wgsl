// common.wgsl - put in front of every kernel. idot(a, b), the sum of four products of signed bytes,
// is put before it: dot4I8Packed where the language has it.

// Batches: vectors of its tokens lie STEP values apart, a multiple of 128; a token is a workgroup's z
// (attend.wgsl: x).
override STEP: u32 = 0u;

// Four integers 0..8 from two consecutive code bytes, s = byte before | byte << 8: t4() of kv23.h. They
// are 4 less than the sums of the two nibbles of each byte of t4_nibbles(): a field that holds one more
// than its ones needs no mask where it is added. The product with 3 is work for the multiplier,
// which stands idle here.
const T4_MUL = 0xD664883Du;
const T4_MUL_HIGH = 0x883D0000u; // its low half, up
fn t4_nibbles(product: u32) -> u32 { // of s and T4_MUL
  var x = product + (product >> 13u);
  x += (~x & 0xAAAAAAAAu) >> 1u; // pairs of bits: their ones and 1
  return x - ((x >> 2u) & 0x33333333u) * 3u;
}
fn t4(s: u32) -> u32 {
  let x = t4_nibbles(s * T4_MUL);
  return ((x + (x >> 4u)) & 0x0F0F0F0Fu) - 0x04040404u;
}

// The four sign bits of s as bytes of 31: u of a lane with its sign bit set is 31 - u.
fn minus31(s: u32) -> u32 {
  return (((s & 15u) * 0x00204081u) & 0x01010101u) * 31u;
}

// Tiles of 256 positions that a span of attention has, where there are at most `most` spans.
fn span_tiles(pos: u32, most: u32) -> u32 {
  return pos / 256u / most + 1u;
}

fn lowbias32(v: u32) -> u32 {
  var x = v;
  x ^= x >> 16u;
  x *= 0x7feb352du;
  x ^= x >> 15u;
  x *= 0x846ca68bu;
  return x ^ (x >> 16u);
}

// Rounded as on the CPU, where the GPU's own division may be off by an ulp or two.
fn divide(a: f32, b: f32) -> f32 {
  let q = a / b;
  return fma(fma(-q, b, a), 1.0 / b, q);
}

fn pack4(c: vec4<i32>) -> u32 {
  let u = bitcast<vec4<u32>>(c) & vec4<u32>(255u);
  return u.x | (u.y << 8u) | (u.z << 16u) | (u.w << 24u);
}

fn magnitude(x: f32) -> u32 {
  return bitcast<u32>(x) & 0x7fffffffu;
}
const INFINITE = 0x7f800000u; // magnitudes from here on are no numbers

// f32_to_f16() of base.h, to the nearest, halves to even; NaN for what is too large (kv_put_f16).
fn to_f16(x: f32) -> u32 {
  let u = bitcast<u32>(x);
  let m = u & 0x7fffffffu;
  let sign = (u >> 16u) & 0x8000u;
  if (m >= 0x477ff000u) { return sign | 0x7e00u; }
  if (m < 0x33000001u) { return sign; }
  let e = m >> 23u;
  if (e > 112u) {
    let r = m + 0xfffu + ((m >> 13u) & 1u);
    return sign | ((r - 0x38000000u) >> 13u);
  }
  let full = (m & 0x7fffffu) | 0x800000u;
  let shift = 126u - e;
  let half = 1u << (shift - 1u);
  return sign | ((full + half - 1u + ((full >> shift) & 1u)) >> shift);
}

fn from_f16(h: u32) -> f32 {
  return unpack2x16float(h).x;
}
