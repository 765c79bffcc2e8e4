#!/bin/sh
# greedy.sh - the cache types on NEON under emulation: builds tests/greedy.c with the library for
# aarch64 and compares with what this machine's best instruction set gives. Exit code 77 (skipped)
# without compiler or emulator. usage: greedy.sh [PROMPTS TOKENS]
set -e
cd "$(dirname "$0")/.."
[ -z "$DIBIT_SANITIZE" ] || { echo "skipped: cross builds have no sanitizers" && exit 77; }
cc=${CROSS_CC:-aarch64-linux-gnu-gcc}
for tool in "$cc" qemu-aarch64; do
    command -v "$tool" >/dev/null || {
        echo "skipped: $tool is not installed (Debian: gcc-aarch64-linux-gnu, qemu-user)"
        exit 77
    }
done
prompts=${1:-1} tokens=${2:-3} model=models/dibit-34m.gguf
dir=$(mktemp -d)
trap 'rm -r "$dir"' EXIT
for f in src/*.c src/kern/*.c tests/greedy.c; do
    more=
    case $f in *avx2* | *avx512* | *simd128*) continue ;; *neondot*) more=-march=armv8.2-a+dotprod ;; esac
    echo "$f${more:+ $more}" # a blank at the end would join lines
done | xargs -P "$(nproc)" -L 1 sh -c '"$0" -std=c11 -O2 -ffp-contract=off -fno-math-errno \
    -fno-trapping-math -Iinclude -Isrc -c $3 "$2" -o "$1/$(echo "$2" | tr / _).o"' "$cc" "$dir"
"$cc" -static -o "$dir/greedy" "$dir"/*.o -lm -lpthread
hashes() { sed 's/^[a-z0-9]* //'; }
"$DIBIT_BUILD/test_greedy" "$model" "$prompts" "$tokens" first >"$dir/all"
hashes <"$dir/all" >"$dir/want"
for set in "cortex-a53 neon" "cortex-a76 neondot"; do
    qemu-aarch64 -cpu ${set% *} "$dir/greedy" "$model" "$prompts" "$tokens" ${set#* } >"$dir/out"
    cat "$dir/out"
    hashes <"$dir/out" | diff - "$dir/want"
done
echo "the same as $(sed 's/ .*//;q' "$dir/all")"
