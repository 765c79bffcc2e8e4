// embed.wgsl - x = row step[3 + z] of the embedding, as decode_*() of plain.c and scalar23.c; the layouts
// of mul_*.wgsl. TYPE: f32 0, f16 1, bf16 2, q4 3, q8 4, s2 5, s3 6.
override N: u32;
override TYPE: u32;
override UNITS: u32;
override FIRST: u32 = 0u; // the rows of this part of the matrix
override ROWS: u32;
@group(0) @binding(0) var<storage, read> step: array<u32>;
@group(0) @binding(1) var<storage, read> w: array<u32>;
@group(0) @binding(2) var<storage, read> scales: array<u32>;
@group(0) @binding(3) var<storage, read> row_scales: array<f32>;
@group(0) @binding(4) var<storage, read_write> x: array<f32>;

fn half_of(word: u32, i: u32) -> f32 {
  let h = unpack2x16float(word);
  return select(h.x, h.y, i == 1u);
}

// Word c of vector v of unit u, of `vectors` a unit.
fn word(row: u32, u: u32, vectors: u32, v: u32, c: u32) -> u32 {
  return w[(((row / 16u * UNITS + u) * vectors + v) * 16u + row % 16u) * 4u + c];
}

fn value(row: u32, j: u32) -> f32 {
  if (TYPE == 0u) { return bitcast<f32>(word(row, j / 4u, 1u, 0u, j % 4u)); }
  if (TYPE == 1u) { return half_of(word(row, j / 8u, 1u, 0u, j / 2u % 4u), j % 2u); }
  if (TYPE == 2u) {
    let c = word(row, j / 8u, 1u, 0u, j / 2u % 4u);
    return bitcast<f32>(select(c << 16u, c & 0xffff0000u, j % 2u == 1u));
  }
  if (TYPE <= 4u) {
    let u = j / 64u;
    let g = j / 32u % 2u;
    let e = j % 32u;
    let d = half_of(scales[(row / 16u * UNITS + u) * 16u + row % 16u], g);
    if (TYPE == 3u) {
      let c = word(row, u, 2u, g, e / 8u) >> (8u * (e % 4u) + e / 4u % 2u * 4u);
      return d * f32(i32(c & 15u) - 8);
    }
    let c = word(row, u, 4u, 2u * g + e / 16u, e / 4u % 4u);
    return d * f32(bitcast<i32>(c << (24u - 8u * (e % 4u))) >> 24u);
  }
  let u = j / 128u;
  let g = j / 32u % 4u;
  let e = j % 32u;
  let vectors = select(2u, 3u, TYPE == 6u);
  var c = (word(row, u, vectors, g / 2u, g % 2u * 2u + e / 16u) >> (8u * (e % 4u) + e / 4u % 4u * 2u)) & 3u;
  if (TYPE == 6u) { c |= ((word(row, u, 3u, 2u, g) >> (8u * (e % 4u) + e / 4u)) & 1u) << 2u; }
  let levels = select(4, 8, TYPE == 6u);
  let cz = (scales[(row / 16u * UNITS + u) * 16u + row % 16u] >> (8u * g)) & 255u;
  let k = i32((cz & 15u) + 4u) * (8 * i32(c) - 4 * (levels - 1) + i32(cz >> 4u) - 8);
  return row_scales[row] * 0.125 * f32(k);
}

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let row = step[3u + id.z] - FIRST; // wraps for rows before
  if (id.x < N && row < ROWS) { x[id.z * STEP + id.x] = value(row, id.x); }
}
