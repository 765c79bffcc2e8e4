// rotate.wgsl - one pass of trellis_rotate() of trellis23.c: Hadamard transforms of sets of SET values
// STRIDE apart, TILE / SET sets a workgroup of 256; with SIGN first times +-FACTOR by the seed's
// signs. With QUANT the set is the whole row, and int8 codes of it come out: quantize_t() of
// kern/trellis_scalar.c.
override SET: u32;    // a power of two, at most TILE
override TILE: u32;   // values of a workgroup, 1024 to 4096
override STRIDE: u32; // of the values of a set
override SIGN: u32;
override SEED: u32 = 0u;
override FACTOR: f32 = 1.0;
override QUANT: u32;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<storage, read_write> q: array<u32>;
@group(0) @binding(4) var<storage, read_write> groups: array<vec2u>;
var<workgroup> part: array<f32, TILE>;

// Where value e of this workgroup's tile is in the row; neighbours in the tile are neighbours there.
fn place(tile: u32, e: u32) -> u32 {
  if (STRIDE == 1u) { return tile * TILE + e; }
  let which = tile * (TILE / SET) + e % (TILE / SET);
  let s = e / (TILE / SET);
  return which / STRIDE * (STRIDE * SET) + which % STRIDE + s * STRIDE;
}

fn factor(j: u32) -> f32 {
  if (SIGN == 0u) { return 1.0; }
  return select(FACTOR, -FACTOR, (lowbias32(SEED + j * 0x9e3779b9u) >> 31u) == 1u);
}

fn total_of(i: u32) {
  workgroupBarrier();
  for (var h = 128u; h > 0u; h >>= 1u) {
    if (i < h) { part[i] += part[i + h]; }
    workgroupBarrier();
  }
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) i: u32) {
  var r = 0.0;
  if (SRC == 1u) { r = inverse_root(i); }
  let step = select(TILE / SET, 1u, STRIDE == 1u); // in the tile, of the values of a set
  for (var e = i; e < TILE / 4u && STRIDE == 1u; e += 256u) { // four neighbours each
    let j = wg.x * TILE + 4u * e;
    let x = source(j / 4u, r);
    for (var k = 0u; k < 4u; k++) { part[4u * e + k] = x[k] * factor(j + k); }
  }
  for (var e = i; e < TILE && STRIDE != 1u; e += 256u) {
    let j = place(wg.x, e);
    part[e] = 0.0;
    if (j < N) { part[e] = a[j / 4u][j % 4u] * factor(j); }
  }
  workgroupBarrier();
  for (var h = step; h < step * SET; h *= 2u) {
    for (var k = i; k < TILE / 2u; k += 256u) {
      let e = k / h * (2u * h) + k % h;
      let u = part[e];
      let v = part[e + h];
      part[e] = u + v;
      part[e + h] = u - v;
    }
    workgroupBarrier();
  }
  if (QUANT == 0u) {
    for (var e = i; e < TILE; e += 256u) {
      let j = place(wg.x, e);
      if (j < N) { y[j] = part[e]; }
    }
    return;
  }
  var v: array<vec4f, 4>; // of up to four quads
  var top = 0u;
  let quads = N / 4u;
  for (var k = 0u; k < 4u; k++) {
    let j = i + 256u * k;
    if (j < quads) {
      v[k] = vec4f(part[j], part[j + quads], part[j + 2u * quads], part[j + 3u * quads]);
      top = max(top, max(max(magnitude(v[k].x), magnitude(v[k].y)),
                         max(magnitude(v[k].z), magnitude(v[k].w))));
    }
  }
  workgroupBarrier();
  part[i] = bitcast<f32>(min(top, INFINITE));
  workgroupBarrier();
  for (var h = 128u; h > 0u; h >>= 1u) {
    if (i < h && bitcast<u32>(part[i + h]) > bitcast<u32>(part[i])) { part[i] = part[i + h]; }
    workgroupBarrier();
  }
  top = bitcast<u32>(part[0]);
  workgroupBarrier();
  var sum = 0;
  for (var k = 0u; k < 4u; k++) {
    let j = i + 256u * k;
    if (j < quads) {
      var c = vec4<i32>();
      if (top > 0u && top < INFINITE) {
        c = vec4<i32>(round(v[k] * min(divide(127.0, bitcast<f32>(top)), 3.4028234e38)));
      }
      q[j] = pack4(c);
      sum += c.x + c.y + c.z + c.w;
    }
  }
  part[i] = f32(sum); // at most 4096 * 127: exact
  total_of(i);
  if (i == 0u) {
    var scale = bitcast<f32>(top);
    if (top < INFINITE) { scale = divide(scale, 127.0); }
    groups[0] = vec2u(bitcast<u32>(scale), bitcast<u32>(i32(part[0])));
  }
}
