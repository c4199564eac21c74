#!/bin/sh
# Fuzzes one reader without cargo-fuzz and without a sanitizer, on any toolchain:
#     fuzz/run.sh NAME [ARGUMENT OF LIBFUZZER ...]
set -eu
name=${1:?usage: fuzz/run.sh NAME [ARGUMENT OF LIBFUZZER ...]}
shift
cd "$(dirname "$0")"
target=$(rustc -vV | sed -n 's/^host: //p')
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
coverage="$coverage -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
coverage="$coverage -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
# With `--target`, build scripts and macros are built without these flags.
RUSTC_BOOTSTRAP=1 RUSTFLAGS="--cfg fuzzing $coverage" \
    cargo build --release --target "$target" --bin "$name" --example seeds
programs=${CARGO_TARGET_DIR:-target}/$target/release
[ -d corpus ] || "$programs/examples/seeds"
mkdir -p "corpus/$name" "artifacts/$name"
exec "$programs/$name" -artifact_prefix="artifacts/$name/" \
    -rss_limit_mb=2048 -timeout=20 "$@" "corpus/$name"
