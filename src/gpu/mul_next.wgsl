// mul_next.wgsl - y += W x, and the int8 codes that the next matrix takes, 32 rows a workgroup: of the
// new y times the weights of its RMSNorm, whose factor is left for its product (mul_int8.wgsl). With GLU
// the rows of W are a gate and an up matrix and the codes are those of their SwiGLU; y is left alone.
// Matches rmsnorm(), swiglu() of kern/float_scalar.c and quantize() of kern/scalar.c; a code may
// be one off where its value is within float rounding of a half.
override GLU: u32; // rows of the gate, 0: none; ROWS_WG is 64 then, else 32
override OUT_AT: u32; // where the sums of squares begin in the groups, words
@group(0) @binding(5) var<storage, read_write> out_q: array<u32>;
@group(0) @binding(6) var<storage, read_write> out_groups: array<u32>;
@group(0) @binding(7) var<storage, read> next: array<f32>;
var<workgroup> tops: array<vec4<u32>, 8>;
var<workgroup> ints: array<vec4<i32>, 8>;
var<workgroup> powers: array<vec4f, 8>;

@compute @workgroup_size(ROWS_WG, LANES)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_id) id: vec3u) {
  let i = id.y * ROWS_WG + id.x;
  let first = wg.x * 32u;
  var row = first + id.x;
  if (id.x >= 32u) { row = GLU + first + id.x - 32u; }
  read_input(i);
  let v = product(row, id) * input_factor();
  if (GLU > 0u) {
    workgroupBarrier();
    if (id.y == 0u) { part[id.x] = v; }
    workgroupBarrier();
  }
  var x = 0.0;
  if (i < 32u) {
    if (GLU > 0u) {
      x = v / (1.0 + exp(min(-v, 88.0))) * part[(i + 32u) % ROWS_WG];
    } else {
      let sum = y[row] + v;
      y[row] = sum;
      x = sum * next[row];
      powers[i / 4u][i % 4u] = sum * sum;
    }
    tops[i / 4u][i % 4u] = magnitude(x);
  }
  workgroupBarrier();
  var most = vec4<u32>();
  for (var k = 0u; k < 8u; k++) { most = max(most, tops[k]); }
  let top = max(max(most.x, most.y), max(most.z, most.w));
  if (i < 32u) {
    var c = 0;
    if (top > 0u && top < INFINITE) {
      c = i32(round(x * min(divide(127.0, bitcast<f32>(top)), 3.4028234e38)));
    }
    ints[i / 4u][i % 4u] = c;
  }
  workgroupBarrier();
  if (i < 8u) { out_q[first / 4u + i] = pack4(ints[i]); }
  if (i == 0u) {
    var c = vec4<i32>();
    var p = vec4f();
    for (var k = 0u; k < 8u; k++) {
      c += ints[k];
      p += powers[k];
    }
    var scale = bitcast<f32>(top);
    if (top < INFINITE) { scale = divide(scale, 127.0); }
    out_groups[2u * wg.x] = bitcast<u32>(scale);
    out_groups[2u * wg.x + 1u] = bitcast<u32>(c.x + c.y + c.z + c.w);
    if (GLU == 0u) { out_groups[OUT_AT + wg.x] = bitcast<u32>(p.x + p.y + p.z + p.w); }
  }
}
