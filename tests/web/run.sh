#!/bin/sh
# run.sh - installs the drivers of the browsers into BUILD/web-tools, once, and runs the browser tests.
# usage: run.sh BUILD [options of run.mjs]
here=$(cd "$(dirname "$0")" && pwd)
tools=$1/web-tools
program=$1/dibit
shift
if ! cmp -s "$here/package.json" "$tools/package.json"; then
    mkdir -p "$tools" && cp "$here/package.json" "$tools/package.json.new" || exit 1
    mv "$tools/package.json.new" "$tools/package.json"
    log=$(cd "$tools" && npm install --no-audit --no-fund --no-package-lock --omit=optional --loglevel=error 2>&1) || {
        rm -f "$tools/package.json"
        echo "$log"
        echo "browsers: the drivers could not be installed by npm"
        [ -z "$CI" ] || exit 1
        echo "browsers: 0 passed, 0 failed, 1 skipped"
        exit 0
    }
fi
exec node "$here/run.mjs" --tools "$(cd "$tools" && pwd)" --program "$program" "$@"
