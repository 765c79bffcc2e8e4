// mul_heads.wgsl - int8 inputs that each workgroup makes of the output of attention: quantize() of
// kern/scalar.c. ONE: a single span, head after head of what attend.wgsl wrote, HEAD values EACH apart;
// else from merge.wgsl.
override ONE: u32;
override HEAD: u32 = 4u;
override EACH: u32 = 4u;
override INPUTS: u32; // a multiple of 32, at most 8192
@group(0) @binding(3) var<storage, read> span: array<vec4f>;
@group(0) @binding(4) var<storage, read> merged: array<vec4f>;
var<workgroup> q: array<vec4<u32>, 512>;
var<workgroup> groups: array<vec2u, 256>;

fn read_four(j: u32) -> vec4f {
  if (ONE == 0u) { return merged[j]; }
  let at = 4u * j / HEAD * EACH;
  return span[(at + 4u * j % HEAD) / 4u] / span[(at + HEAD) / 4u].y;
}

// A barrier follows before q and groups are read. Zeros beyond INPUTS: workgroup memory begins as that.
fn read_input(i: u32) {
  for (var g = i; g < INPUTS / 32u; g += ROWS_WG * LANES) {
    var x: array<vec4f, 8>;
    var most = vec4<u32>();
    for (var k = 0u; k < 8u; k++) {
      x[k] = read_four(8u * g + k);
      most = max(most, bitcast<vec4<u32>>(x[k]) & vec4<u32>(0x7fffffffu));
    }
    let top = max(max(most.x, most.y), max(most.z, most.w));
    var scale = bitcast<f32>(top);
    var inverse = 0.0;
    if (top < INFINITE) {
      if (top > 0u) { inverse = min(divide(127.0, scale), 3.4028234e38); }
      scale = divide(scale, 127.0);
    }
    var words: array<u32, 8>;
    var sum = vec4<i32>();
    for (var k = 0u; k < 8u; k++) {
      var c = vec4<i32>();
      if (top < INFINITE) { c = vec4<i32>(round(x[k] * inverse)); }
      words[k] = pack4(c);
      sum += c;
    }
    q[2u * g] = vec4<u32>(words[0], words[1], words[2], words[3]);
    q[2u * g + 1u] = vec4<u32>(words[4], words[5], words[6], words[7]);
    groups[g] = vec2u(bitcast<u32>(scale), bitcast<u32>(sum.x + sum.y + sum.z + sum.w));
  }
  workgroupBarrier();
}

fn input_factor() -> f32 { return 1.0; }
