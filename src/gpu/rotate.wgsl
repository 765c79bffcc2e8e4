// rotate.wgsl - one pass of trellis_rotate() of trellis23.c: Hadamard transforms of sets of SET values
// STRIDE apart, 4096 / SET sets a workgroup of 256; with SIGN first times +-FACTOR by the seed's
// signs. An invocation does four steps at a time on 16 values in registers. With QUANT the set is the
// whole row, and int8 codes of it come out: quantize_t() of kern/trellis_scalar.c.
override SET: u32;    // a power of two, at most 4096
override STRIDE: u32; // of the values of a set
override SIGN: u32;
override SEED: u32 = 0u;
override FACTOR: f32 = 1.0;
override QUANT: u32;
const TILE = 4096u;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<storage, read_write> q: array<u32>;
@group(0) @binding(4) var<storage, read_write> groups: array<vec2u>;
var<workgroup> part: array<f32, TILE>;

// Where value e of this workgroup's tile, value e % SET of a set, is in the row.
fn place(tile: u32, e: u32) -> u32 {
  if (STRIDE == 1u) { return tile * TILE + e; }
  let which = (tile * TILE + e) / SET;
  return which / STRIDE * (STRIDE * SET) + which % STRIDE + e % SET * STRIDE;
}

// Where it is in part, so that neighbouring invocations meet different banks.
fn bank(e: u32) -> u32 { return e ^ ((e >> 4u) & 15u); }

// x times +-FACTOR. The sign is put in as a bit, so that no GPU makes one operation of the product and
// the sum behind it, which would round otherwise than the CPU.
fn with_sign(x: f32, j: u32) -> f32 {
  if (SIGN == 0u) { return x; }
  return bitcast<f32>(bitcast<u32>(x * FACTOR) ^
                      (lowbias32(SEED + j * 0x9e3779b9u) & 0x80000000u));
}

struct Sixteen { a: vec4f, b: vec4f, c: vec4f, d: vec4f }

fn pairs(v: vec4f) -> vec4f { return vec4f(v.x + v.y, v.x - v.y, v.z + v.w, v.z - v.w); }
fn halves(v: vec4f) -> vec4f { return vec4f(v.xy + v.zw, v.xy - v.zw); }

// Sums and differences of values `step` * 1, 2, 4, 8 apart, as far as a set goes.
fn sixteen(x: Sixteen, step: u32) -> Sixteen {
  var v = x;
  if (step < SET) { v = Sixteen(pairs(v.a), pairs(v.b), pairs(v.c), pairs(v.d)); }
  if (2u * step < SET) { v = Sixteen(halves(v.a), halves(v.b), halves(v.c), halves(v.d)); }
  if (4u * step < SET) { v = Sixteen(v.a + v.b, v.a - v.b, v.c + v.d, v.c - v.d); }
  if (8u * step < SET) { v = Sixteen(v.a + v.c, v.b + v.d, v.a - v.c, v.b - v.d); }
  return v;
}

fn four(e: u32, step: u32) -> vec4f {
  return vec4f(part[bank(e)], part[bank(e + step)], part[bank(e + 2u * step)],
               part[bank(e + 3u * step)]);
}

fn put_four(e: u32, step: u32, v: vec4f) {
  part[bank(e)] = v.x;
  part[bank(e + step)] = v.y;
  part[bank(e + 2u * step)] = v.z;
  part[bank(e + 3u * step)] = v.w;
}

fn put(e: u32, step: u32, v: Sixteen) {
  put_four(e, step, v.a);
  put_four(e + 4u * step, step, v.b);
  put_four(e + 8u * step, step, v.c);
  put_four(e + 12u * step, step, v.d);
}

// Steps `step` to 8 * step, from part to part.
fn round_of(i: u32, step: u32) {
  let e = i / step * (16u * step) + i % step;
  workgroupBarrier();
  put(e, step, sixteen(Sixteen(four(e, step), four(e + 4u * step, step), four(e + 8u * step, step),
                               four(e + 12u * step, step)), step));
}

// Values e to e + 3 of the tile.
fn load(tile: u32, e: u32, r: f32) -> vec4f {
  if (STRIDE == 1u) {
    let j = place(tile, e);
    let v = source(j / 4u, r);
    return vec4f(with_sign(v.x, j), with_sign(v.y, j + 1u), with_sign(v.z, j + 2u),
                 with_sign(v.w, j + 3u));
  }
  var v = vec4f();
  for (var c = 0u; c < 4u; c++) {
    let m = place(tile, e + c);
    if (m < N) { v[c] = with_sign(a[slot() + m / 4u][m % 4u], m); }
  }
  return v;
}

fn quantize(i: u32) {
  var v: array<vec4f, 4>; // of up to four quads
  var top = 0u;
  let quads = N / 4u;
  for (var k = 0u; k < 4u; k++) {
    let j = i + 256u * k;
    if (j < quads) {
      v[k] = vec4f(part[bank(j)], part[bank(j + quads)], part[bank(j + 2u * quads)],
                   part[bank(j + 3u * quads)]);
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
      q[slot() + j] = pack4(c);
      sum += c.x + c.y + c.z + c.w;
    }
  }
  part[i] = f32(sum); // at most 4096 * 127: exact
  workgroupBarrier();
  for (var h = 128u; h > 0u; h >>= 1u) {
    if (i < h) { part[i] += part[i + h]; }
    workgroupBarrier();
  }
  if (i == 0u) {
    var scale = bitcast<f32>(top);
    if (top < INFINITE) { scale = divide(scale, 127.0); }
    groups[token * (STEP / 32u)] = vec2u(bitcast<u32>(scale), bitcast<u32>(i32(part[0])));
  }
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) i: u32) {
  token = wg.z;
  var r = 0.0;
  if (SRC == 1u) { r = inverse_root(i); }
  let e = 16u * i;
  put(e, 1u, sixteen(Sixteen(load(wg.x, e, r), load(wg.x, e + 4u, r), load(wg.x, e + 8u, r),
                             load(wg.x, e + 12u, r)), 1u));
  if (SET > 16u) { round_of(i, 16u); }
  if (SET > 256u) { round_of(i, 256u); }
  workgroupBarrier();
  if (QUANT == 1u) {
    quantize(i);
    return;
  }
  for (var k = i; k < TILE; k += 256u) { // neighbours store neighbours
    let t = select(k % (TILE / SET) * SET + k / (TILE / SET), k, STRIDE == 1u);
    let j = place(wg.x, t);
    if (j < N) { y[token * STEP + j] = part[bank(t)]; }
  }
}
