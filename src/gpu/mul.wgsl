// mul.wgsl - y = W x for one token, or y += W x with ADD. A workgroup has ROWS_WG rows and SLICES
// slices of their units. The file before it brings the type: unit_dot(), the product of one unit of a
// row, and row_scale(). Weights lie in blocks of 16 rows: unit after unit, in each its vec4<u32>
// in order, of each vector the 16 rows; words of a unit likewise (GPU.md, "Layouts").
override ROWS: u32;
override UNITS: u32; // of a row
override ROWS_WG: u32 = 16u;
override SLICES: u32 = 16u;
override ADD: u32 = 0u;
override AT: u32 = 0u; // of row 0 in y
@group(0) @binding(0) var<storage, read_write> y: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<vec4<u32>>;
var<workgroup> part: array<f32, ROWS_WG * SLICES>;

@compute @workgroup_size(ROWS_WG, SLICES)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_id) id: vec3u) {
  let row = wg.x * ROWS_WG + id.x;
  var acc = 0.0;
  for (var u = id.y; u < UNITS; u += SLICES) {
    acc += unit_dot(row / 16u * UNITS + u, row % 16u, u);
  }
  part[id.y * ROWS_WG + id.x] = acc;
  workgroupBarrier();
  for (var h = SLICES / 2u; h > 0u; h >>= 1u) {
    if (id.y < h) { part[id.y * ROWS_WG + id.x] += part[(id.y + h) * ROWS_WG + id.x]; }
    workgroupBarrier();
  }
  if (id.y == 0u && row < ROWS) {
    let v = part[id.x] * row_scale(row);
    if (ADD == 1u) { y[AT + row] += v; } else { y[AT + row] = v; }
  }
}
