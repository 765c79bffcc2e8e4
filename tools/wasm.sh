#!/bin/sh
# wasm.sh - builds the WebAssembly modules of web/CMakeLists.txt. usage: wasm.sh FOLDER [make's options]
set -e
web=$(cd "$(dirname "$0")/../web" && pwd)
out=$1
shift
unset MAKEFLAGS MFLAGS MAKELEVEL # an outer make counts its own jobs
log=$(cmake -S "$web" -B "$out" -DCMAKE_C_COMPILER="${WASM_CC:-clang-22}" -Wno-dev 2>&1) ||
    { echo "$log"; exit 1; }
cmake --build "$out" "$@"
