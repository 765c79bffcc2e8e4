#!/bin/sh
# wasm.sh - builds the WebAssembly modules and runs tests/wasm.mjs: kernels exact, greedy tokens those
# of the native program for each type of cache. Exit code 77 (skipped) without compiler or node.
# usage: wasm.sh (in the environment NODE=program; KERN="-n 300 -k mul": arguments of the kernel test; VERBOSE=1)
set -e
cd "$(dirname "$0")/.."
[ -z "$DIBIT_SANITIZE" ] || { echo "skipped: WebAssembly has no sanitizers" && exit 77; }
for tool in "${WASM_CC:-clang-22}" wasm-ld-22 node; do
    command -v "$tool" >/dev/null || {
        echo "skipped: $tool is not installed (make wasm installs it; Debian: clang-22 lld-22 nodejs)"
        exit 77
    }
done
build=${DIBIT_BUILD:-build} model=models/dibit-34m.gguf prompt="The history of the city begins"
tools/wasm.sh "$build/web" >"$build/wasm.log" 2>&1 || { cat "$build/wasm.log" && exit 1; }
if grep -n 'warning:' "$build/wasm.log"; then exit 1; fi
want=$(mktemp)
trap 'rm -f "$want"' EXIT
tab=$(printf '\t')
for cache in f16 q8 q4 k3 k2; do
    "$build/dibit" run -m $model -p "$prompt" -n 64 --temp 0 --json -c 256 -ctk $cache -ctv $cache \
        2>/dev/null | sed "s/^/$cache$tab/" >>"$want"
done
"${NODE:-node}" tests/wasm.mjs "$build/web" $model "$want" "$prompt"
