// topk.wgsl - of N candidates, 1024 a workgroup of 256, the first 64 in order: larger first, of equals the
// lower index, as order_first() of sample.c. FIRST reads logits, a later run the pairs (key, index) of the
// run before, LAST leaves (bits of the logit, index). A logit that is no number comes first, as NaN.
// Blocks of 64 are sorted, every other one backwards; then the better halves of two are merged until
// one is left. Where there are fewer candidates indices of -1 follow.
override N: u32;
override FIRST: u32;
override LAST: u32;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> before: array<vec2u>;
@group(0) @binding(2) var<storage, read_write> best: array<vec2u>;
var<workgroup> part: array<vec2u, 1024>;

fn bits(key: u32) -> u32 {
  return select(key & 0x7fffffffu, ~key, key < 0x80000000u);
}

fn exchange(a: u32, b: u32, down: bool) {
  let p = part[a];
  let q = part[b];
  if (is_better(q, p) == down) {
    part[a] = q;
    part[b] = p;
  }
}

// Pair p of those `far` apart: its first index.
fn first_of(p: u32, far: u32) -> u32 {
  return 2u * p - (p & (far - 1u));
}

fn load(j: u32) -> vec2u {
  if (j >= N) { return vec2u(0u, 0xffffffffu); }
  if (FIRST == 1u) { return vec2u(key(x[j]), j); }
  return before[j];
}

fn sort_blocks(i: u32) {
  for (var size = 2u; size <= 64u; size *= 2u) {
    for (var far = size / 2u; far > 0u; far /= 2u) {
      workgroupBarrier();
      for (var p = i; p < 512u; p += 256u) {
        let a = first_of(p, far);
        exchange(a, a + far, (a & size) == 0u);
      }
    }
  }
}

// Blocks 2b and 2b + 1 of those `apart` apart become one, where the first was.
fn merge_blocks(i: u32, apart: u32) {
  workgroupBarrier();
  for (var p = i; p < 32768u / apart; p += 256u) {
    let a = p / 64u * 2u * apart + p % 64u;
    if (is_better(part[a + apart], part[a])) { part[a] = part[a + apart]; }
  }
  for (var far = 32u; far > 0u; far /= 2u) {
    workgroupBarrier();
    for (var p = i; p < 16384u / apart; p += 256u) {
      let a = p / 32u * 2u * apart + first_of(p % 32u, far);
      exchange(a, a + far, p / 32u % 2u == 0u);
    }
  }
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) i: u32) {
  for (var k = i; k < 1024u; k += 256u) { part[k] = load(1024u * wg.x + k); }
  sort_blocks(i);
  for (var apart = 64u; apart < 1024u; apart *= 2u) { merge_blocks(i, apart); }
  workgroupBarrier();
  if (i >= 64u) { return; }
  var p = part[i];
  if (LAST == 1u && p.y != 0xffffffffu) { p.x = bits(p.x); }
  best[64u * wg.x + i] = p;
}
