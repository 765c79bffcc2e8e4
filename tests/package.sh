#!/bin/sh
# package.sh - builds the WebAssembly modules and runs the tests of the package that need no browser:
# web/test/unit-*.mjs. Exit code 77 (skipped) without compiler or node.
# usage: package.sh [a unit's name ...]
set -e
cd "$(dirname "$0")/.."
[ -z "$DIBIT_SANITIZE" ] || { echo "skipped: WebAssembly has no sanitizers" && exit 77; }
for tool in "${WASM_CC:-clang-22}" wasm-ld-22 node; do
    command -v "$tool" >/dev/null || {
        echo "skipped: $tool is not installed (make wasm installs it; Debian: clang-22 lld-22 nodejs)"
        exit 77
    }
done
build=${DIBIT_BUILD:-build}
tools/wasm.sh "$build/web" >"$build/package.log" 2>&1 || { cat "$build/package.log" && exit 1; }
export DIBIT_WASM="$build/web"
for unit in ${*:-web/test/unit-*.mjs}; do
    unit=web/test/$(basename "$unit")
    out=$(node --test "$unit" 2>&1) || { echo "$out" && exit 1; }
    echo "$(basename "$unit"): $(echo "$out" | sed -n 's/^# pass //p') passed, $(echo "$out" | sed -n 's/^# skipped //p') skipped"
done
