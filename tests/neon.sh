#!/bin/sh
# neon.sh - the NEON kernels under emulation: builds tests/kern.c for aarch64 and runs it on a core
# without and on cores with the dot product; then the whole library with examples/kv.c, which must
# print what it prints here. Exit code 77 (skipped) without compiler or emulator.
# usage: neon.sh [arguments of test_kern]
set -e
[ -z "$DIBIT_SANITIZE" ] || { echo "skipped: cross builds have no sanitizers" && exit 77; }
cc=${CROSS_CC:-aarch64-linux-gnu-gcc}
for tool in "$cc" qemu-aarch64; do
    command -v "$tool" >/dev/null || {
        echo "skipped: $tool is not installed (Debian: gcc-aarch64-linux-gnu, qemu-user)"
        exit 77
    }
done
dir=$(mktemp -d)
trap 'rm -r "$dir"' EXIT
"$(dirname "$0")/kern_static.sh" "$dir/test_kern" "$cc"
for cpu in cortex-a53 cortex-a76 max; do
    echo "-- $cpu"
    qemu-aarch64 -cpu $cpu "$dir/test_kern" -n 25 "$@"
done

echo "-- examples/kv.c"
cd "$(dirname "$0")/.."
for f in src/*.c src/kern/*.c; do
    case $f in
    *avx* | *simd128*) continue ;;
    *neondot.c) isa=-march=armv8.2-a+dotprod ;;
    *) isa= ;;
    esac
    "$cc" -std=c11 -O1 -ffp-contract=off -Iinclude -Isrc $isa -c "$f" -o "$dir/$(echo "$f" | tr / _).o"
done
"$cc" -std=c11 -static -Iinclude examples/kv.c "$dir"/*.o -o "$dir/kv" -lm -lpthread
want=$("${DIBIT_BUILD:-build}/example_kv")
for cpu in cortex-a53 max; do
    got=$(qemu-aarch64 -cpu $cpu "$dir/kv")
    [ "$got" = "$want" ] || { echo "$cpu prints '$got', not '$want'" && exit 1; }
done
