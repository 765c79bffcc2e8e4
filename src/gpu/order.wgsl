// order.wgsl - the order of logits that argmax.wgsl and topk.wgsl choose by, that of sample.c: larger first, of
// equals the lower index. Larger numbers have larger keys, none has 0; what is no number comes first of
// all.
fn key(f: f32) -> u32 {
  let u = bitcast<u32>(f);
  if (magnitude(f) >= INFINITE) { return 0xffffffffu; }
  if (f == 0.0) { return 0x80000000u; } // -0 too
  return select(u | 0x80000000u, ~u, (u >> 31u) == 1u);
}

// Of pairs (key, index).
fn is_better(p: vec2u, q: vec2u) -> bool {
  return p.x > q.x || (p.x == q.x && p.y < q.y);
}
