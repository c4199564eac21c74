#!/usr/bin/env bash
# Checks and times opensora on a machine with an NVIDIA GPU, within 8 minutes.
#
#   scripts/gpu-check.sh [PROGRAM] [OUT]
#
# PROGRAM is the output of scripts/gpu-build.sh (default: target/gpu/opensora.xz; .xz and .zst are
# unpacked), OUT a folder for the results (default: target/gpu/check). Needs the GPU's driver, CUDA 13
# with its headers (CUDA_PATH, else /usr/local/cuda) and python3, but no network and no compiler.
#
# Runs all golden cases (`verify`), every part of the flow and a training step at published sizes with
# random weights (`bench`), the demo model (`sample`), and lists the kernels that take longest. Writes
#
#   OUT/gpu.json           everything, with the share of the GPU's peak and the three largest costs
#   OUT/gpu.md             the table for docs/performance.md
#   OUT/*.json, *.err      output of each step
#
# and puts the table into docs/performance.md, between the two `gpu-check` comments.
#
# Environment: GPU_CHECK_DEVICE (default cuda:0; another backend's device is a dry run with small
# sizes, which leaves docs/performance.md alone), GPU_CHECK_SECONDS (default 480).
#
# Exit codes: 0 all steps passed, 1 a step failed or was skipped, 2 nothing was run (for example, no GPU).
set -euo pipefail
export LC_ALL=C # $EPOCHREALTIME has the locale's decimal point
exec </dev/null
root=$(cd "$(dirname "$0")/.." && pwd)

nothing() {
    echo "gpu-check.sh: nothing was run: $*" >&2
    exit 2
}

program=${1:-$root/target/gpu/opensora.xz}
out=${2:-$root/target/gpu/check}
device=${GPU_CHECK_DEVICE:-cuda:0}
budget=${GPU_CHECK_SECONDS:-480}
began=$SECONDS

case $device in
    cuda | cuda:*) real=yes ;;
    *) real= ;;
esac
if [ -n "$real" ]; then
    command -v nvidia-smi >/dev/null || nothing "no NVIDIA GPU here (nvidia-smi is missing)"
    nvidia-smi -L 2>/dev/null | grep -q '^GPU' || nothing "no NVIDIA GPU here (nvidia-smi lists none)"
    export CUDA_PATH=${CUDA_PATH:-/usr/local/cuda}
    [ -e "$CUDA_PATH/include/cuda_fp16.h" ] || nothing "no CUDA headers in $CUDA_PATH/include: set CUDA_PATH"
    export LD_LIBRARY_PATH=$CUDA_PATH/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
fi
command -v python3 >/dev/null || nothing "python3 is missing"
[ -e "$program" ] || nothing "no program $program: build it with scripts/gpu-build.sh"
program=$(cd "$(dirname "$program")" && pwd)/$(basename "$program")

mkdir -p "$out"
out=$(cd "$out" && pwd)
rm -f "$out"/*.json "$out"/*.err "$out"/*.tsv "$out"/gpu.md "$out"/kernels.log
work=$(mktemp -d)
poller=
trap '[ -z "$poller" ] || kill "$poller" 2>/dev/null || true; rm -rf "$work"' EXIT

case $program in
    *.xz) xz -dc "$program" >"$work/opensora" || nothing "$program cannot be unpacked" ;;
    *.zst) zstd -dqc "$program" >"$work/opensora" || nothing "$program cannot be unpacked" ;;
    *) cp "$program" "$work/opensora" ;;
esac
chmod +x "$work/opensora"
opensora=$work/opensora
"$opensora" --version >/dev/null || nothing "$program does not start"

"$opensora" devices --json >"$out/devices.json" 2>"$out/devices.err" || nothing "$(tail -n1 "$out/devices.err")"
python3 - "$device" "$out/devices.json" <<'PY' || nothing "$program finds no device $device (see $out/devices.json)"
import json, sys
name, path = sys.argv[1:]
rows = json.load(open(path))
sys.exit(not any(name in (row["backend"], *row["devices"]) and row["devices"] for row in rows))
PY

# Memory in use on the GPU with the time, five times a second at most. Includes memory that the allocator
# caches, and that of other programs.
: >"$out/memory.tsv"
if [ -n "$real" ]; then
    index=${device#cuda}
    index=${index#:}
    nvidia-smi -i "${index:-0}" --query-gpu=name,driver_version,memory.total --format=csv,noheader,nounits >"$out/gpu.csv"
    while :; do
        used=$(nvidia-smi -i "${index:-0}" --query-gpu=memory.used --format=csv,noheader,nounits 2>/dev/null) || used=
        printf '%s\t%s\n' "$EPOCHREALTIME" "$used"
        sleep 0.2
    done >"$out/memory.tsv" &
    poller=$!
fi

# step NAME LIMIT COMMAND...: runs one step within LIMIT seconds and the rest of the budget. Steps after
# the end of the budget are skipped.
failed=0
step() {
    local name=$1 limit=$2 left=$((budget - (SECONDS - began)))
    shift 2
    if [ "$left" -lt 5 ]; then
        printf '%s\t%s\t%s\t%s\n' "$name" skipped "$EPOCHREALTIME" "$EPOCHREALTIME" >>"$out/steps.tsv"
        echo "$name: skipped, no time left"
        failed=1
        return
    fi
    [ "$limit" -le "$left" ] || limit=$left
    local from=$EPOCHREALTIME rc=0
    timeout -k 5 "$limit" "$@" >"$out/$name.json" 2>"$out/$name.err" || rc=$?
    printf '%s\t%s\t%s\t%s\n' "$name" "$rc" "$from" "$EPOCHREALTIME" >>"$out/steps.tsv"
    case $rc in
        0) echo "$name: done at $((SECONDS - began)) s" ;;
        124 | 137) failed=1; echo "$name: took more than $limit s" ;;
        *) failed=1; echo "$name: failed: $(grep -m1 '^error' "$out/$name.err" || tail -n1 "$out/$name.err")" ;;
    esac
}

on=(--device "$device")
cases=("$root/tests/fixtures/goldens")
if [ -n "$real" ]; then
    sizes=() reps=(--warmup 2 --reps 5) clip=(--num-frames 16 --micro-batch 4)
    few=(--warmup 1 --reps 3) solver=(--sampler dpm-solver --steps 20) shallow=(--depth 4)
else
    cases=("$root/tests/fixtures/goldens/"{stdit-safetensors,vae-safetensors,t5-encoder-safetensors})
    sizes=(--preset demo --image-size 32x32) reps=(--warmup 1 --reps 1) clip=(--num-frames 2)
    few=("${reps[@]}") solver=(--sampler dpm-solver --steps 2) shallow=(--depth 1)
fi
bench() {
    local name=$1 limit=$2 what=$3
    shift 3
    step "$name" "$limit" "$opensora" bench "$what" "${sizes[@]}" "${on[@]}" "$@"
}

# The most informative steps first, since the last ones are skipped if time runs out.
step verify 150 "$opensora" verify "${cases[@]}" "${on[@]}" --json
bench stdit-bf16 60 stdit --dtype bf16 "${reps[@]}"
bench train-step-bf16 60 train-step --dtype bf16 "${few[@]}"
step sample-demo 60 "$opensora" sample "a red circle grows on a black background" --model "$root/crates/demo/model" \
    -o "$work/circle.mp4" "${on[@]}" --json
bench stdit-f32 60 stdit "${reps[@]}"
bench train-step-f32 60 train-step "${few[@]}"
bench vae-decode-f32 60 vae-decode "${clip[@]}" "${few[@]}"
bench vae-decode-bf16 60 vae-decode --dtype bf16 "${clip[@]}" "${few[@]}"
bench vae-encode-f32 60 vae-encode "${clip[@]}" "${few[@]}"
bench t5-bf16 90 t5 --dtype bf16 "${few[@]}"

# Kernels of one forward pass with their times, as CubeCL logs them. CubeCL reads its settings from the
# working directory, hence the new folder.
mkdir "$work/kernels"
printf '[profiling.logger]\nlevel = "basic"\nfile = "kernels.log"\n' >"$work/kernels/cubecl.toml"
cd "$work/kernels"
bench kernels-bf16 60 stdit --dtype bf16 "${shallow[@]}" --warmup 1 --reps 1 --no-ceiling
cd "$root"
[ ! -e "$work/kernels/kernels.log" ] || cp "$work/kernels/kernels.log" "$out/kernels.log"

# Prompt to frames at published sizes, with new random weights for every stage.
bench sample-bf16 180 sample --dtype bf16 "${solver[@]}" --warmup 0 --reps 1

docs=()
[ -z "$real" ] || docs=("$root/docs/performance.md")
python3 "$root/scripts/gpu_report.py" "$out" "$device" "${docs[@]}"
echo "results: $out (after $((SECONDS - began)) s)"
exit "$failed"
