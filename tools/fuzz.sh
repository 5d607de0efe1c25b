#!/usr/bin/env bash
# Searches vbnet-core for breaking input, guided by what code an input reaches (libFuzzer, rust/fuzz).
#
#   tools/fuzz.sh [TARGET...]   each target, or those named, for FUZZ_SECONDS (default 60); a finding is kept and named
#   tools/fuzz.sh seeds         keeps in rust/fuzz/seeds the fewest inputs that reach what all found so far do; tests run those
#
# What was found to reach something is kept in target/fuzz/corpus, so that the next search goes on from there. The stable
# compiler does all of it: coverage is a pass of LLVM that it has, and no sanitizer is asked for.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds="${FUZZ_SECONDS:-60}"
host=$(rustc -vV | sed -n 's/^host: //p')
folder="$(realpath -m "${CARGO_TARGET_DIR:-target}")/fuzz"
coverage=(-sanitizer-coverage-level=4 -sanitizer-coverage-inline-8bit-counters -sanitizer-coverage-pc-table
    -sanitizer-coverage-trace-compares)
flags="--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module"
for argument in "${coverage[@]}"; do
    flags+=" -Cllvm-args=$argument"
done

# The target is named so that build scripts and macros, which run on this machine, are not instrumented.
RUSTFLAGS="$flags" cargo build --quiet --manifest-path rust/fuzz/Cargo.toml --release --target "$host" --target-dir "$folder"

mapfile -t targets < <(basename -s .rs rust/fuzz/targets/*.rs)
program() { echo "$folder/$host/release/$1"; }

if [ "${1:-}" = seeds ]; then
    for target in "${targets[@]}"; do
        mkdir -p "$folder/corpus/$target" "$folder/merged"
        merged=$(mktemp -d "$folder/merged/$target-XXXXXX")
        "$(program "$target")" -set_cover_merge=1 -use_counters=0 -timeout=30 "$merged" "rust/fuzz/seeds/$target" "$folder/corpus/$target" 2>"$merged.log"
        rm -rf "rust/fuzz/seeds/$target"
        mv "$merged" "rust/fuzz/seeds/$target"
        chmod 755 "rust/fuzz/seeds/$target"
    done
    exit 0
fi

[ $# = 0 ] || targets=("$@")
mkdir -p "$folder/findings"
for target in "${targets[@]}"; do
    mkdir -p "$folder/corpus/$target"
    echo "fuzz: $target for $seconds s"
    # Long inputs from the start: what is looked for takes many steps.
    "$(program "$target")" -max_total_time="$seconds" -len_control=0 -timeout=30 -rss_limit_mb=4096 -print_final_stats=1 -verbosity=0 \
        -artifact_prefix="$folder/findings/$target-" "$folder/corpus/$target" "rust/fuzz/seeds/$target"
done
