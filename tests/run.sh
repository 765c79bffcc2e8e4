#!/bin/sh
# run.sh - runs ctest in a build folder and ends in one line: N passed, N failed[, N skipped].
# Counts single cmocka tests; a program without any counts as one. What fails shows its output.
# usage: run.sh BUILD [ctest options]
build=$1
shift
export ASAN_OPTIONS="allocator_may_return_null=1:detect_leaks=1:${ASAN_OPTIONS:-}"
export UBSAN_OPTIONS="print_stacktrace=1:${UBSAN_OPTIONS:-}"
export TSAN_OPTIONS="allocator_may_return_null=1:${TSAN_OPTIONS:-}"
# TSan of gcc 12 cannot place its shadow where addresses are randomised by more than 28 bits.
plain=
case $build in *tsan*) setarch -R true 2>/dev/null && plain="setarch -R" ;; esac

log=$build/Testing/Temporary/LastTest.log
rm -f "$log"
status=$build/test-status
{ $plain ctest --test-dir "$build" --output-on-failure -j "${JOBS:-$(nproc)}" "$@" 2>&1
  echo "ctest exit $?"; } | tee "$status" | grep -v '^ *Start \|^Internal ctest\|^ctest exit'

# First the statuses that ctest printed, then what each program said in the log.
[ -e "$log" ] || log=/dev/null
awk '
FNR == 1 { file++ }
file == 1 && /^ *[0-9]+\/[0-9]+ +Test +#[0-9]+: / {
    sub(/^.*Test +#[0-9]+: /, ""); name = $1
    state[name] = /   Passed / ? "passed" : /\*\*\*Skipped/ ? "skipped" : "failed"
}
file == 1 && /^ctest exit/ { code = $3 }
file == 2 && /^[0-9]+\/[0-9]+ Testing: / { name = $3 }
file == 2 && /^\[       OK \]/ { ok[name]++ }
file == 2 && /^\[  SKIPPED \] / && !/test\(s\)/ && !seen[name, $4 $5]++ { skipped[name]++ }
file == 2 && /^\[  FAILED  \] / && !/test\(s\)/ && !seen[name, $4 $5]++ { bad[name]++ }
file == 2 && /^skipped: / && !(name in why) { why[name] = $0 }
END {
    for (name in state) {
        n_pass += ok[name]; n_skip += skipped[name]; n_fail += bad[name]
        n = ok[name] + skipped[name] + bad[name]
        if (state[name] == "failed" && !bad[name]) n_fail++
        else if (!n && state[name] == "passed") n_pass++
        else if (!n && state[name] == "skipped") n_skip++
        if (state[name] != "failed" && bad[name] && !code) code = 1
        if (name in why) print name ": " why[name]
    }
    if (!n_pass && !n_fail) { print "no tests ran"; n_fail = 1 }
    if (code && !n_fail) n_fail = 1
    printf "%d passed, %d failed%s\n", n_pass, n_fail, n_skip ? ", " n_skip " skipped" : ""
    exit n_fail > 0
}' "$status" "$log"
