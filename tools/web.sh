#!/bin/sh
# web.sh - puts the package together in web/dist: the modules of build/web beside the sources, which are
# plain ES modules, each made small by esbuild where `deps.sh web` could install it.
# usage: web.sh FOLDER (of the build) [make's options]
set -e
root=$(cd "$(dirname "$0")/.." && pwd)
"$root/tools/wasm.sh" "$@" >"$1.log" 2>&1 || { cat "$1.log" && exit 1; }
rm -rf "$root/web/dist"
mkdir "$root/web/dist"
esbuild=$root/build/npm/node_modules/.bin/esbuild
if [ -e "$esbuild" ]; then
    "$esbuild" "$root"/web/src/*.js --minify --format=esm --target=es2022 --outdir="$root/web/dist" --log-level=warning
else
    echo "esbuild is not there (make web installs it by npm): web/dist has the sources as they are"
    cp "$root"/web/src/*.js "$root/web/dist"
fi
cp "$root"/web/src/*.d.ts "$root/LICENSE" "$1"/dibit-*.wasm "$root/web/dist"
ls -l "$root/web/dist" | awk 'NR > 1 { n += $5 } END { print "web/dist: " NR - 1 " files, " n " bytes" }'
