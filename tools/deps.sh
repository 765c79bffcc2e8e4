#!/bin/sh
# deps.sh - installs what is missing for a group of work: build, test, lint, fuzz, neon, wasm, web, browsers, gpu.
# Looks for the tool or header itself and not for the package, so it does nothing, quickly, where all is there.
# usage: deps.sh GROUP...
set -eu

have() { # a probe: cmd:NAME, hdr:FILE, so:FILE, file:PATTERN ..
    case $1 in
    cmd:*) command -v "${1#cmd:}" >/dev/null ;;
    hdr:*) printf '#if !__has_include(<%s>)\n#error\n#endif\n' "${1#hdr:}" |
        ${CC:-cc} -E - >/dev/null 2>&1 ;;
    file:*) ls ${1#file:} >/dev/null 2>&1 ;; # a pattern
    so:*) /sbin/ldconfig -p | grep -q "${1#so:}" ;;
    cxx) echo 'int main() {}' | ${CXX:-c++} -x c++ -fsyntax-only - >/dev/null 2>&1 ;;
    libfuzzer) [ -e "$(clang -print-file-name=libclang_rt.fuzzer-$(uname -m).a 2>/dev/null)" ] ;;
    esac
}

want() { # probe, Debian package
    have "$1" || missing="$missing $2"
}

# npm packages go to build/npm; nothing of the project's own depends on them.
npm_packages() {
    absent=
    for p in $packages; do [ -e "build/npm/node_modules/${p%@*}" ] || absent="$absent $p"; done
    [ -n "$absent" ] || return 0
    echo "installing npm packages to build/npm:$absent"
    mkdir -p build/npm && npm install --prefix build/npm --no-save --ignore-scripts --silent $packages
}

missing= packages=
for group in "$@"; do
    case $group in
    build)
        want hdr:stdio.h libc6-dev
        want cmd:cmake cmake
        want hdr:jansson.h libjansson-dev
        want hdr:editline/readline.h libedit-dev
        ;;
    test)
        want hdr:cmocka.h libcmocka-dev
        want cmd:pkg-config pkg-config
        want cxx g++
        ;;
    lint) want cmd:clang-format-14 clang-format-14 ;;
    fuzz)
        want cmd:clang clang
        want libfuzzer libclang-rt-14-dev
        ;;
    neon)
        want cmd:aarch64-linux-gnu-gcc "gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
        want cmd:qemu-aarch64 qemu-user
        ;;
    wasm)
        want cmd:cmake cmake
        want cmd:clang-22 clang-22
        want cmd:wasm-ld-22 lld-22
        want cmd:node nodejs
        ;;
    web) # what makes the package's JavaScript small
        want cmd:npm npm
        packages="$packages esbuild@0.28.2"
        ;;
    browsers)
        want cmd:node nodejs
        want cmd:npm npm
        want cmd:chromium chromium
        want cmd:firefox-esr firefox-esr
        want cmd:WebKitWebDriver webkit2gtk-driver
        want cmd:xvfb-run "xvfb xauth"
        want "file:/usr/share/vulkan/icd.d/lvp_icd*" mesa-vulkan-drivers # Firefox's adapter where there is no GPU
        ;;
    gpu) # tests of the GPU side: a WebGPU library, a checker of kernels, the Vulkan loader
        want cmd:npm npm
        want so:libvulkan.so.1 libvulkan1
        packages="$packages bun-webgpu-linux-x64@0.1.7 webgpu@0.6.2 web-naga@1.0.1"
        ;;
    *) echo "deps.sh: no group $group" >&2 && exit 2 ;;
    esac
done
[ -n "$missing" ] || { npm_packages && exit 0; }

if ! command -v apt-get >/dev/null; then
    echo "missing (by their Debian names):$missing. Please install them and try again." >&2
    exit 1
fi
sudo=
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null ||
        { echo "missing:$missing. Please run as root: apt-get install$missing" >&2 && exit 1; }
    sudo=sudo
fi
echo "installing Debian packages:$missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
install() {
    $sudo apt-get -q update &&
        $sudo env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install $missing
}
install >"$log" 2>&1 || { cat "$log" >&2 && exit 1; }
npm_packages
