// batch.wgsl - Y = W X, or Y += W X with ADD, for vectors STEP apart: workgroup (x, y) has TOKENS of them
// and 2 ROWS_WG rows, an invocation two rows, so what it reads of W serves TOKENS vectors, what it reads
// of X two rows. In the place of mul.wgsl, with the same files before it; the sums are the same but
// for their order. Vectors that no token has are computed too, and nobody reads them.
override UNITS: u32;
override ROWS_WG: u32 = 16u;
override SLICES: u32 = 16u;
override ROWS: u32;
override ADD: u32 = 0u;
override AT: u32 = 0u; // of row 0 in y
const TOKENS = 8u; // GPU_TOGETHER
@group(0) @binding(0) var<storage, read_write> y: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<vec4<u32>>;
var<workgroup> part: array<vec4f, 256>;

fn put(at: u32, v: f32) {
  if (ADD == 1u) { y[at] += v; } else { y[at] = v; }
}

fn four(c: Unit, u: u32, t: u32) -> vec4f {
  return vec4f(unit_dot(c, u, t), unit_dot(c, u, t + 1u), unit_dot(c, u, t + 2u), unit_dot(c, u, t + 3u));
}

// The sums of vectors t to t + 3.
fn store(id: vec3u, row: u32, t: u32, sums: vec4f) {
  var v = sums;
  if (SLICES > 1u) {
    part[id.y * ROWS_WG + id.x] = v;
    workgroupBarrier();
    for (var h = SLICES / 2u; h > 0u; h >>= 1u) {
      if (id.y < h) { part[id.y * ROWS_WG + id.x] += part[(id.y + h) * ROWS_WG + id.x]; }
      workgroupBarrier();
    }
    v = part[id.x];
    workgroupBarrier();
  }
  if (id.y != 0u || row >= ROWS) { return; }
  v *= row_scale(row);
  let at = t * STEP + AT + row;
  put(at, v.x);
  put(at + STEP, v.y);
  put(at + 2u * STEP, v.z);
  put(at + 3u * STEP, v.w);
}

@compute @workgroup_size(ROWS_WG, SLICES)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_id) id: vec3u) {
  let row = 2u * wg.y * ROWS_WG + id.x;
  let other = row + ROWS_WG;
  let t = wg.x * TOKENS;
  var a: vec4f; // of row
  var b: vec4f;
  var c: vec4f; // of other
  var d: vec4f;
  for (var u = id.y; u < UNITS; u += SLICES) {
    let x = unit_load(row / 16u * UNITS + u, row % 16u);
    let z = unit_load(other / 16u * UNITS + u, other % 16u);
    a += four(x, u, t);
    c += four(z, u, t);
    b += four(x, u, t + 4u);
    d += four(z, u, t + 4u);
  }
  store(id, row, t, a);
  store(id, row, t + 4u, b);
  store(id, other, t, c);
  store(id, other, t + 4u, d);
}
