#!/bin/sh
# web.sh - puts the package together in web/dist: the modules of build/web beside the sources, which are
# plain ES modules and only lose their comments. usage: web.sh FOLDER (of the build) [make's options]
set -e
root=$(cd "$(dirname "$0")/.." && pwd)
"$root/tools/wasm.sh" "$@" >"$1.log" 2>&1 || { cat "$1.log" && exit 1; }
rm -rf "$root/web/dist"
mkdir "$root/web/dist"
node "$root/tools/squeeze.mjs" "$root/web/dist" "$root"/web/src/*.js
cp "$root"/web/src/*.d.ts "$root/LICENSE" "$1"/dibit-*.wasm "$root/web/dist"
ls -l "$root/web/dist" | awk 'NR > 1 { n += $5 } END { print "web/dist: " NR - 1 " files, " n " bytes" }'
