#!/bin/sh
# kern_static.sh - builds tests/kern.c with its kernels as one static program, to be carried to another
# machine. usage: kern_static.sh OUT [CC] [flags...]; CC may be a cross compiler for aarch64.
set -e
root=$(cd "$(dirname "$0")/.." && pwd)
out=$1 cc=${2:-gcc}
shift; [ $# -eq 0 ] || shift
objects=$(mktemp -d)
trap 'rm -r "$objects"' EXIT
flags="-std=c11 -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math -I$root/include -I$root/src $*"
avx2="-mavx2 -mfma -mf16c -mbmi2"
avx512="$avx2 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni"
build() { # file, flags of its instruction set
    file=$root/$1.c
    shift
    [ ! -f "$file" ] || $cc $flags "$@" -c "$file" -o "$objects/$(basename "$(dirname "$file")")_$(basename "$file").o"
}
for f in src/base src/kern/cpu src/kern/scalar src/kern/float_scalar src/kern/kv_scalar src/kern/trellis_scalar src/kern/encode_scalar; do build $f; done
for f in tests/kern tests/kern_float tests/kern_kv tests/kern_trellis tests/kern_encode; do build $f; done
for f in src/kv23 src/trellis23 src/types src/plain src/kquant src/scalar23; do build $f; done
case $($cc -dumpmachine) in
x86_64*)
    for f in avx2 float_avx2 kv_avx2 trellis_avx2 encode_avx2; do build src/kern/$f $avx2; done
    for f in avx512vnni float_avx512 trellis_avx512vnni; do build src/kern/$f $avx512; done
    for f in kv_avx512bitalg trellis_avx512bitalg; do build src/kern/$f $avx512 -mavx512bitalg -mavx512vbmi; done
    ;;
aarch64*)
    for f in neon float_neon kv_neon trellis_neon encode_neon; do build src/kern/$f; done
    for f in neondot kv_neondot trellis_neondot; do build src/kern/$f -march=armv8.2-a+dotprod; done
    ;;
esac
$cc -static -o "$out" "$objects"/*.o -lm
