#!/bin/sh
# bundle.sh - packs the package, installs it into a copy of web/example-vite, builds that with Vite, and
# compiles a program in TypeScript against its types. What npm brings stays in BUILD/bundle. Exit code 77
# (skipped) without compiler, node or npm, or where npm has no network.
set -e
cd "$(dirname "$0")/.."
[ -z "$DIBIT_SANITIZE" ] || { echo "skipped: WebAssembly has no sanitizers" && exit 77; }
for tool in "${WASM_CC:-clang-22}" wasm-ld-22 node npm; do
    command -v "$tool" >/dev/null || { echo "skipped: $tool is not installed" && exit 77; }
done
build=$(cd "${DIBIT_BUILD:-build}" && pwd)
work=$build/bundle
tools/web.sh "$build/web" >/dev/null
rm -rf "$work/app" && mkdir -p "$work/app" "$work/tools"

npm="npm --no-audit --no-fund --loglevel=error"
if [ ! -e "$work/tools/node_modules/.bin/vite" ] || [ ! -e "$work/tools/node_modules/.bin/tsc" ]; then
    vite=$(sed -n 's/.*"vite": "\(.*\)".*/\1/p' web/example-vite/package.json)
    $npm install --prefix "$work/tools" "vite@$vite" typescript@5 publint >"$work/npm.log" 2>&1 || {
        cat "$work/npm.log"
        echo "skipped: npm could not install vite, typescript and publint"
        exit 77
    }
fi
bin=$work/tools/node_modules/.bin
"$bin/publint" web --strict || exit 1

# As from the registry: what npm pack takes, in node_modules.
tar=$(cd web && $npm pack --silent --pack-destination "$work/app")
cp web/example-vite/* "$work/app"
mkdir -p "$work/app/node_modules"
tar -xzf "$work/app/$tar" -C "$work/app/node_modules" && mv "$work/app/node_modules/package" "$work/app/node_modules/dibit"
(cd "$work/app" && "$bin/vite" build) >"$work/vite.log" 2>&1 || { cat "$work/vite.log" && exit 1; }
for what in 'worker-*.js' 'thread-*.js' 'dibit-simd-*.wasm' 'dibit-threads-*.wasm' 'dibit-relaxed1-*.wasm' \
    'dibit-relaxed-*.wasm' 'dibit-gpu-*.wasm'; do
    set -- "$work"/app/dist/assets/$what
    [ -e "$1" ] || { cat "$work/vite.log" && echo "bundle: no assets/$what" && exit 1; }
done
! grep -q warning "$work/vite.log" || { cat "$work/vite.log" && exit 1; }
echo "bundle: vite build has the page, its workers and the modules: $(ls "$work/app/dist/assets" | wc -l) files"

cp web/test/types.ts "$work/app"
(cd "$work/app" && "$bin/tsc" --noEmit --strict --target es2022 --module nodenext --moduleResolution nodenext \
    --lib es2022,dom,dom.asynciterable types.ts) || exit 1
echo "bundle: types.ts compiles"
