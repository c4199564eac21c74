#!/usr/bin/env bash
# Builds the program for a machine with an NVIDIA GPU, on a machine without one.
#
#   scripts/gpu-build.sh [OUT] [FEATURES]
#
# Writes OUT/opensora.xz (default OUT: target/gpu; default features: cuda-full), the input of
# scripts/gpu-check.sh. The build needs neither CUDA nor LLVM, only the crates:
#
# - CubeCL compiles CUDA kernels either with LLVM, whose libraries its build script downloads from a host
#   that many machines cannot reach, or, with its feature `cuda-cpp`, as CUDA C++ with NVRTC. This script
#   sets the feature in a copy of the sources, so that released builds do not have it. With DOCS_RS the
#   build script downloads nothing, and the linker leaves LLVM's functions unresolved: they are linked
#   lazily and never called.
# - cudarc by default binds the functions of the newest CUDA that it knows; a function that the machine's
#   CUDA lacks would end the program. CUDARC_CUDA_VERSION (default 13000, for 13.0) is the oldest
#   CUDA that the program supports.
#
# The program does not contain the demo model, which scripts/gpu-check.sh takes from crates/demo/model.
#
# Use the program without LLVM for checks only. To install opensora on a machine with a GPU,
# build it there: `cargo install --path crates/cli --features cuda-full`.
#
# Most of the program is CubeCL's generators of kernels, which run once a kernel: dependencies are optimised for size, except
# those that run for every operation.
#
# Environment: GPU_BUILD_TARGET (target directory, default OUT/target; separate since its flags differ),
# GPU_BUILD_LTO (default off; thin or fat take far longer), GPU_BUILD_OPT (level of dependencies, default z).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
fail() {
    echo "gpu-build.sh: $*" >&2
    exit 1
}
[ "$(uname -s)" = Linux ] || fail "made for Linux, this is $(uname -s)"
command -v xz >/dev/null || fail "xz is missing"

out=${1:-$root/target/gpu}
features=${2:-cuda-full}
mkdir -p "$out"
out=$(cd "$out" && pwd)
export CARGO_TARGET_DIR=${GPU_BUILD_TARGET:-$out/target}
export CARGO_INCREMENTAL=0
export CUDARC_CUDA_VERSION=${CUDARC_CUDA_VERSION:-13000}
export DOCS_RS=1
# Identical functions are folded.
export RUSTFLAGS="-C link-arg=-Wl,--unresolved-symbols=ignore-all -C relro-level=partial"
RUSTFLAGS+=" -C link-arg=-Wl,--icf=all"

# Always the same folder, so that a second build reuses what the first has compiled.
copy=$CARGO_TARGET_DIR/sources
# Files that were deleted here must not stay there; the others keep their times.
rm -rf "$copy"
mkdir -p "$copy"
(cd "$root" && git ls-files -z --cached --others --exclude-standard -- . ':!tests/fixtures' ':!fuzz' |
    tar --null --ignore-failed-read -cf - -T - 2>/dev/null) | tar -C "$copy" -xf -
version=$(sed -n '/^name = "cubecl"$/{n;s/version = "\(.*\)"/\1/p}' "$copy/Cargo.lock")
[ -n "$version" ] || fail "Cargo.lock has no cubecl"
# What runs for every operation, and what computes on the host.
fast=$(printf '%s\n' burn-autodiff burn-backend burn-core burn-dispatch burn-fusion burn-ir burn-std burn-tensor bytemuck \
    crc32fast cubecl-common cubecl-cuda cubecl-runtime fdeflate flate2 half hashbrown image memchr miniz_oxide num-traits png \
    rand rayon rayon-core rusty_h264-accel rusty_h264-common rusty_h264-encoder safetensors sha2 zip zune-jpeg)
# A new table, since the last one of the manifest is [lints].
cat >>"$copy/crates/cli/Cargo.toml" <<MANIFEST

[dependencies.cubecl]
version = "=$version"
default-features = false
features = ["cuda-cpp"]
MANIFEST
# Panics unwind, since \`verify\` catches them.
cat >>"$copy/Cargo.toml" <<MANIFEST

[profile.gpu]
inherits = "release"
opt-level = 3
lto = "${GPU_BUILD_LTO:-off}"
strip = true
debug = false

[profile.gpu.package."*"]
opt-level = "${GPU_BUILD_OPT:-z}"

[profile.gpu.package]
$(sed 's/$/.opt-level = 3/' <<<"$fast")
MANIFEST

cd "$copy"
# Enters the new dependency into the copy's lock file, without changing versions.
cargo update --workspace --quiet
cargo build --profile gpu -p opensora-cli --no-default-features --features "$features"
program=$CARGO_TARGET_DIR/gpu/opensora
"$program" --version
"$program" devices
# The filter for x86 makes addresses of calls alike.
xz --x86 --lzma2=preset=9e -T1 -kc "$program" >"$out/opensora.xz"
size() { stat -c %s "$1"; }
printf '%s: %d.%d MB, unpacked %d MB\n' "$out/opensora.xz" $(($(size "$out/opensora.xz") / 1000000)) \
    $(($(size "$out/opensora.xz") / 100000 % 10)) $(($(size "$program") / 1000000))
[ "$(size "$out/opensora.xz")" -lt 14000000 ] || echo "gpu-build.sh: more than 14 MB" >&2
