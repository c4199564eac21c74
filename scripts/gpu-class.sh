#!/usr/bin/env bash
# Runs golden cases and training tests on `wgpu` with fusion and autotune, on software Vulkan.
#
#   scripts/gpu-class.sh [DEVICE]      (default: wgpu:0)
#
# Checks the numbers, not the speed, of the kernels that real GPUs run, on a machine without a GPU. Tuning
# compiles and times many kernels, which takes minutes a case on a software driver, so CI does not run
# this: it tests `wgpu` without fusion and autotune. Prints a line for each case with its seconds, then
# the tests' own summary.
#
# Needs a Vulkan driver: Mesa's lavapipe (Debian: mesa-vulkan-drivers) is used if installed. GPU_CLASS_ICD
# names another driver's file; GPU_CLASS_FEATURES (default wgpu-full) other features of the program, such
# as `wgpu,fusion`.
set -euo pipefail
exec </dev/null
cd "$(dirname "$0")/.."
device=${1:-wgpu:0}
features=${GPU_CLASS_FEATURES:-wgpu-full}
parts=${features//-full/,fusion,autotune}

lavapipe=$(ls /usr/share/vulkan/icd.d/lvp_icd*.json 2>/dev/null | head -n1 || true)
icd=${GPU_CLASS_ICD:-$lavapipe}
if [ -n "$icd" ]; then
    # The loader's old and new variable.
    export VK_ICD_FILENAMES=$icd VK_DRIVER_FILES=$icd
fi
# lavapipe needs a folder for its sockets.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-$scratch}

# One selection of packages and features for the program and the tests, so that burn is compiled once.
selected=(--locked -p opensora-cli -p opensora-tests --test training --test waits
    --features "opensora-cli/${features//,/,opensora-cli/},opensora-tests/${parts//,/,opensora-tests/}")
cargo build "${selected[@]}" --bin opensora
opensora=$(cargo metadata --format-version 1 --no-deps --locked | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/debug/opensora
"$opensora" devices
"$opensora" devices --json | grep -q "\"$device\"" || { echo "gpu-class.sh: no device $device" >&2; exit 2; }

failed=0
for case in tests/fixtures/goldens/*/; do
    began=$SECONDS
    "$opensora" verify "$case" --device "$device" --quiet >"$scratch/said" 2>&1 || { failed=1; cat "$scratch/said"; }
    printf '%-36s %4d s  %s\n' "$(basename "$case")" $((SECONDS - began)) "$(grep 'cases passed' "$scratch/said" || true)"
done
OPENSORA_TEST_DEVICES=$device cargo test "${selected[@]}" -- --test-threads 1 || failed=1
exit $failed
