#!/bin/sh
# install.sh - installs the library into a temporary prefix and builds an embedding program against
# it through pkg-config and through CMake; the header alone must compile as C11 and as C++17.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
build=${DIBIT_BUILD:-$root/build}
cc=${DIBIT_CC:-cc}
if [ -n "${DIBIT_SANITIZE:-}" ]; then
    echo "skipped: an embedding program is not built with sanitizers"
    exit 77
fi
dir=$(mktemp -d)
trap 'code=$?; [ $code -eq 0 ] || { cat "$dir/log"; echo "[  FAILED  ] $step"; }; rm -rf "$dir"' EXIT
: >"$dir/log"
begin() { step=$1; : >"$dir/log"; }
passed() { echo "[       OK ] $step"; }

begin install
cmake --install "$build" --prefix "$dir/prefix" >"$dir/log" 2>&1
for f in bin/dibit include/dibit.h share/bash-completion/completions/dibit; do
    [ -s "$dir/prefix/$f" ] || { echo "$f was not installed" >>"$dir/log"; false; }
done
"$dir/prefix/bin/dibit" --version >"$dir/log" 2>&1
passed

begin header_c11
echo '#include <dibit.h>' >"$dir/header.c"
"$cc" -std=c11 -Wall -Wextra -Wpedantic -Werror -fsyntax-only -I"$dir/prefix/include" "$dir/header.c" \
    >"$dir/log" 2>&1
passed

begin header_cxx17
if command -v c++ >/dev/null; then
    c++ -x c++ -std=c++17 -Wall -Wextra -Wpedantic -Werror -fsyntax-only -I"$dir/prefix/include" \
        "$dir/header.c" >"$dir/log" 2>&1
    passed
else
    echo "[  SKIPPED ] $step (no C++ compiler)"
fi

# Opens a file that is not there: links, runs, and reports an error as it should.
cat >"$dir/embed.c" <<'C'
#include <dibit.h>
#include <stdio.h>
#include <string.h>
int main(void) {
    DibitError err = { 0 };
    DibitEngine *engine;
    int code = dibit_open(&engine, "no-such-file.gguf", NULL, &err);
    dibit_close(&engine);
    printf("%s: %d %s\n", dibit_version(), code, err.text);
    return !(code == DIBIT_E_IO && err.code == code && strstr(err.text, "no-such-file.gguf"));
}
C
pc=$(dirname "$(find "$dir/prefix" -name dibit.pc)")
lib=$(dirname "$pc")

for kind in static shared; do
    begin pkg_config_$kind
    if ! command -v pkg-config >/dev/null; then
        echo "[  SKIPPED ] $step (no pkg-config)"
        continue
    fi
    # The prefix may have been moved since it was configured: pkg-config takes it from the file's place.
    flags="--define-prefix --cflags --libs"
    [ $kind = shared ] || flags="$flags --static"
    flags=$(PKG_CONFIG_PATH=$pc pkg-config $flags dibit)
    [ $kind = shared ] || flags=$(echo "$flags" | sed "s,-ldibit,$lib/libdibit.a,")
    "$cc" -std=c11 -o "$dir/embed_$kind" "$dir/embed.c" $flags >"$dir/log" 2>&1
    LD_LIBRARY_PATH=$lib "$dir/embed_$kind" >>"$dir/log" 2>&1
    passed
done

for target in dibit static shared; do
    begin cmake_$target
    mkdir "$dir/$target"
    cp "$dir/embed.c" "$dir/$target"
    cat >"$dir/$target/CMakeLists.txt" <<C
cmake_minimum_required(VERSION 3.20)
project(embed C)
find_package(dibit 0.1 REQUIRED)
add_executable(embed embed.c)
target_link_libraries(embed dibit::$target)
C
    cmake -S "$dir/$target" -B "$dir/$target/build" -DCMAKE_PREFIX_PATH="$dir/prefix" \
        -DCMAKE_C_COMPILER="$cc" >"$dir/log" 2>&1
    cmake --build "$dir/$target/build" >>"$dir/log" 2>&1
    "$dir/$target/build/embed" >>"$dir/log" 2>&1
    passed
done
