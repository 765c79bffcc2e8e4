#!/bin/sh
# fuzz.sh - runs the fuzzers of a build, one after another. New inputs are kept in BUILD/corpus, an
# input that fails is left in BUILD/crashes; put it into tests/fuzz/corpus/NAME with the fix.
# usage: fuzz.sh BUILD NAME|'*' SECONDS
build=$1 seconds=$3 failed=0 n=0
mkdir -p "$build/crashes"
export ASAN_OPTIONS="allocator_may_return_null=1:${ASAN_OPTIONS:-}"
for program in $build/fuzz_$2; do
    [ -x "$program" ] || continue
    name=${program##*/fuzz_}
    n=$((n + 1))
    corpus=$build/corpus/$name
    seeds=tests/fuzz/corpus/$name
    [ -d "$seeds" ] || seeds=
    mkdir -p "$corpus"
    log=$build/$name.log
    if "$program" -max_total_time="$seconds" -timeout=1 -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix="$build/crashes/$name-" "$corpus" $seeds >"$log" 2>&1; then
        echo "ok   $name: $(sed -n 's/^Done \([0-9]*\) runs in \([0-9]*\).*/\1 inputs in \2 s/p' "$log")"
    else
        failed=$((failed + 1))
        tail -60 "$log"
        echo "FAIL $name: see $log"
    fi
done
[ $n -gt 0 ] || { echo "no fuzzer named $2" && exit 1; }
echo "$((n - failed)) fuzzers clean, $failed failed"
[ $failed -eq 0 ]
