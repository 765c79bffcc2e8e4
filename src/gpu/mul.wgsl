// mul.wgsl - the products of a workgroup with ROWS_WG rows and SLICES slices of their units, for one
// token. The file before it brings the type: unit_load(), a unit of a row, unit_dot(), its product
// with a token's input, row_scale() and input_factor(); the one behind it main(). Weights lie in blocks of 16 rows: unit
// after unit, in each its vec4<u32> in order, of each vector the 16 rows; words of a unit likewise
// (GPU.md, "Layouts").
override UNITS: u32; // of a row
override ROWS_WG: u32 = 16u;
override SLICES: u32 = 16u;
override LANES: u32 = 16u; // invocations of a row: SLICES of them, or one that takes the slices in turn
@group(0) @binding(0) var<storage, read_write> y: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<vec4<u32>>;
var<workgroup> part: array<f32, 1024>; // at most; by an override Firefox crashes

// Of a row, in the invocations of slice 0.
fn product(row: u32, id: vec3u) -> f32 {
  for (var s = id.y; s < SLICES; s += LANES) {
    var acc = 0.0;
    for (var u = s; u < UNITS; u += SLICES) {
      acc += unit_dot(unit_load(row / 16u * UNITS + u, row % 16u), u, 0u);
    }
    part[s * ROWS_WG + id.x] = acc;
  }
  workgroupBarrier();
  for (var h = SLICES / 2u; h > 0u; h >>= 1u) {
    for (var s = id.y; s < h; s += LANES) {
      part[s * ROWS_WG + id.x] += part[(s + h) * ROWS_WG + id.x];
    }
    if (LANES > 1u) { workgroupBarrier(); }
  }
  return part[id.x] * row_scale(row);
}
