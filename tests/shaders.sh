#!/bin/sh
# shaders.sh - every GPU kernel through Dawn's Null backend, where node and the npm package webgpu are
# there (tools/deps.sh gpu).
at="${DIBIT_BUILD:-build}/npm/node_modules/webgpu"
command -v node >/dev/null || { echo "skipped: node is missing"; exit 77; }
[ -e "$at/index.js" ] || { echo "skipped: npm package webgpu is missing (tools/deps.sh gpu)"; exit 77; }
exec node "$(dirname "$0")/shaders.mjs" "$(cd "$at" && pwd)"
