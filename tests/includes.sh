#!/bin/sh
# includes.sh - who may include whom: the table below and a loop over the #include lines. A file may
# include headers of its own level and of the levels under it, and what its row names besides; the
# engine's own system headers are listed too. Levels: docs/ARCHITECTURE.md.
# usage: includes.sh [ROOT]
cd "${1:-$(dirname "$0")/..}" || exit 1

# level  headers
headers='
0  dibit.h
1  base.h
2  types.def codec.h
3  kern.h gguf.h tokenizer.h vocab.h unicode.h sample.h chat.h cache.h kv23.h basis.h trellis23.h
4  ops.h
4  gpu.h ops_gpu.h check.h
5  model.h
6  session.h backend.h step.h
7  quantize.h evaluate.h shape.h context.h calibrate.h calibration.h calibrate_kv.h calibrate_basis.h calibrate_sensitivity.h dense.h feedback.h recover.h quantize_part.h fields.h plan.h feature.h
'
# files (first match counts)                      levels (a first and a last one), or names
files='
include/dibit.h                                   names
src/base.* src/file.c src/pool.c                  0-1
src/codec* src/types.c src/plain.c src/kquant.c   0-2
src/scalar23.c                                    0-2
src/kern/*                                        names kern.h codec.h kv23.h trellis23.h dibit.h
src/gpu/gpu.h src/gpu/webgpu.c                    0-1 gpu.h
src/gpu/step*                                     0-6
src/gpu/*                                         0-4
src/ops* src/attend*                              0-4
src/model* src/backend.h                          0-5
src/kv.c                                          0-4
src/session* src/engine.c src/saved.c src/remote.c             0-6
src/quantize* src/evaluate* src/shape*            0-5 7-7
src/calibrat* src/feedback* src/recover* src/context*  0-5 7-7
src/dense*                                        0-1 7-7
src/plan* src/device* src/feature* src/fields*  0-5 7-7
src/*                                             0-3
app/convert* app/safetensors*                     names dibit.h base.h gguf.h codec.h
app/gpu.c                                         names dibit.h base.h gpu.h step.h check.h feature.h gguf.h
app/detect.c                                      names dibit.h base.h plan.h feature.h gpu.h
app/tokenize.c                                    names dibit.h base.h gguf.h tokenizer.h
app/*                                             names dibit.h base.h quantize.h evaluate.h shape.h calibrate.h calibrate_kv.h context.h plan.h feature.h
'
# system headers: of the whole engine, of the kernels besides, of the program besides
engine='assert.h ctype.h errno.h fcntl.h float.h inttypes.h limits.h math.h pthread.h sched.h stdarg.h
 stdatomic.h stdbool.h stddef.h stdint.h stdio.h stdlib.h string.h sys/mman.h sys/stat.h sys/types.h
 time.h unistd.h'
kern='immintrin.h arm_neon.h wasm_simd128.h cpuid.h sys/auxv.h asm/hwcap.h'
gpu='dlfcn.h'
offline='regex.h'
app='jansson.h editline/readline.h histedit.h dirent.h getopt.h signal.h sys/ioctl.h termios.h
 sys/resource.h sys/statvfs.h locale.h langinfo.h strings.h sys/time.h sys/wait.h dlfcn.h'

find include src app -name '*.[ch]' -o -name '*.def' | sort | xargs grep -n '^ *# *include' /dev/null |
    awk -v headers="$headers" -v files="$files" -v engine="$engine" -v kern="$kern" -v gpu="$gpu" \
        -v offline="$offline" -v app="$app" '
function glob(p) { gsub(/\./, "\\.", p); gsub(/\*/, ".*", p); return "^" p "$" }
function has(list, word,   a, n, i) {
    n = split(list, a, /[ \n]+/)
    for (i = 1; i <= n; i++) if (a[i] == word) return 1
    return 0
}
function row_of(file,   i) {
    for (i = 1; i <= n_rules; i++) if (file ~ pattern[i]) return rule[i]
    return "names"
}
function allowed(file, header, row,   a, n, i, r) {
    n = split(row, a, " ")
    for (i = 1; i <= n; i++) {
        if (a[i] == header) return 1
        if (split(a[i], r, "-") == 2 && header in level && level[header] >= r[1] && level[header] <= r[2])
            return 1
    }
    return 0
}
BEGIN {
    n = split(headers, line, "\n")
    for (i = 1; i <= n; i++) {
        m = split(line[i], w, " ")
        for (j = 2; j <= m; j++) level[w[j]] = w[1]
    }
    n = split(files, line, "\n")
    for (i = 1; i <= n; i++) {
        m = split(line[i], w, " ")
        for (k = 1; k <= m && w[k] !~ /^(names|[0-9]-[0-9])$/; k++) {}
        row = ""
        for (j = k; j <= m; j++) row = row " " w[j]
        for (j = 1; j < k; j++) { pattern[++n_rules] = glob(w[j]); rule[n_rules] = row }
    }
}
{
    split($0, part, ":"); file = part[1]; n_includes++
    header = $0; sub(/^[^<"]*[<"]/, "", header); sub(/[>"].*$/, "", header)
    quoted = $0 ~ /include *"/
    base = header; sub(/^.*\//, "", base)
    if (!quoted) {
        ok = has(file ~ /dibit\.h$/ ? "stddef.h stdint.h" : engine, header) ||
             (file ~ /^src\/kern\// && has(kern, header)) || (file ~ /^app\// && has(app, header)) ||
             (file == "src/gpu/webgpu.c" && has(gpu, header)) ||
             (file ~ /^src\/quantize/ && has(offline, header))
    } else if (!(base in level))
        ok = match(file, /^(app|src\/kern)\//) && system("test -e " substr(file, 1, RLENGTH) base) == 0
    else
        ok = allowed(file, base, row_of(file))
    if (!ok) { print file ":" part[2] ": may not include " header; bad++ }
}
END {
    if (!n_includes) { print "no includes found"; exit 1 }
    printf "%d includes, %d against the table\n", n_includes, bad
    exit bad > 0
}'
