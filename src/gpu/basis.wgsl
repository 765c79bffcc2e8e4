// basis.wgsl - basis_rotate() of basis.c on v, D values in workgroup memory, by workgroups of 128.
override D: u32;
override ROOT: f32; // 1 / sqrt(the largest power of two in D)
var<workgroup> v: array<f32, D>;

fn basis_signs(i: u32, stage: u32) {
  for (var j = i; j < D; j += 128u) {
    if ((lowbias32(0x6b763233u + stage + j * 0x9e3779b9u) >> 31u) == 1u) { v[j] = -v[j]; }
  }
  workgroupBarrier();
}

fn basis_hadamard(i: u32) {
  for (var h = 1u; h < (D & (~D + 1u)); h *= 2u) {
    for (var k = i; k < D / 2u; k += 128u) {
      let e = k / h * (2u * h) + k % h;
      let x = v[e];
      let y = v[e + h];
      v[e] = x + y;
      v[e + h] = x - y;
    }
    workgroupBarrier();
  }
  for (var j = i; j < D; j += 128u) { v[j] *= ROOT; }
  workgroupBarrier();
}

// Value j of the blocks of b goes to j % b * (D / b) + j / b, or comes back. D is at most 256.
fn basis_deal(i: u32, back: bool) {
  let b = D & (~D + 1u);
  var x = vec2f();
  for (var k = 0u; k < 2u; k++) {
    let j = i + 128u * k;
    if (j < D) {
      if (back) { x[k] = v[j % b * (D / b) + j / b]; } else { x[k] = v[j]; }
    }
  }
  workgroupBarrier();
  for (var k = 0u; k < 2u; k++) {
    let j = i + 128u * k;
    if (j < D) {
      if (back) { v[j] = x[k]; } else { v[j % b * (D / b) + j / b] = x[k]; }
    }
  }
  workgroupBarrier();
}

fn basis_in(i: u32) {
  basis_signs(i, 0u);
  basis_hadamard(i);
  if ((D & (D - 1u)) != 0u) {
    basis_deal(i, false);
    basis_signs(i, 1u);
    basis_hadamard(i);
  }
}

fn basis_out(i: u32) {
  if ((D & (D - 1u)) != 0u) {
    basis_hadamard(i);
    basis_signs(i, 1u);
    basis_deal(i, true);
  }
  basis_hadamard(i);
  basis_signs(i, 0u);
}
