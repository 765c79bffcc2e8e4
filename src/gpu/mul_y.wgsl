// mul_y.wgsl - y = W x, or y += W x with ADD.
override ROWS: u32;
override ADD: u32 = 0u;
override AT: u32 = 0u; // of row 0 in y

@compute @workgroup_size(ROWS_WG, LANES)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_id) id: vec3u) {
  let row = wg.x * ROWS_WG + id.x;
  read_input(id.y * ROWS_WG + id.x);
  let v = product(row, id) * input_factor();
  if (id.y == 0u && row < ROWS) {
    if (ADD == 1u) { y[AT + row] += v; } else { y[AT + row] = v; }
  }
}
