#!/usr/bin/env bash
# Runs every subcommand of `opensora` under conditions of shells that break programs:
#
#   closed    standard output is closed              (>&-)
#   head      its reader leaves after a line         (| head -1)
#   gone      its reader exits at once               (| true)
#   full      standard output is on a full disk      (>/dev/full)
#   err-full  standard error is on a full disk       (2>/dev/full)
#   err-gone  the reader of standard error exits     (2>&1 >/dev/null | true)
#
#   scripts/shells.sh [REPETITIONS [SUBCOMMAND...]]      default: 50 repetitions of every subcommand
#
# The program is the one in OPENSORA, else the `opensora` in PATH. Each run must exit with the documented code, without a panic,
# write the requested files, and leave no temporary file. Everything happens in a temporary folder.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
program=$(command -v "${OPENSORA:-opensora}") || { echo "no program: put opensora into PATH or set OPENSORA" >&2; exit 2; }
program=$(realpath "$program")
repetitions=${1:-50}
[ $# -eq 0 ] || shift
fixtures=$root/tests/fixtures
kinds=(closed head gone full err-full err-gone)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 2

# ---- Tiny input files -----------------------------------------------------------------------
cat >vae.toml <<'TOML'
[vae]
unit_latents = 4
[vae.config]
block_out_channels = [8, 8, 8]
layers_per_block = 1
norm_num_groups = 4
[data.clip]
num_frames = 1
image_size = [32, 32]
[run]
steps = 1
batch_size = 2
TOML
cat >t5.toml <<'TOML'
[t5]
max_length = 16
[t5.config]
vocab_size = 160
d_model = 16
d_kv = 8
d_ff = 32
num_layers = 1
num_heads = 2
[run]
steps = 1
batch_size = 2
TOML
cat >pipeline.toml <<'TOML'
input = 'world/films'
work = 'out/work'
out = 'out/all.csv'
[split]
fps = 'source'
shorter_side = 32
min_seconds = 0.5
TOML
prepare() {
    "$program" data demo -o world --clips 4 --stills 4 --films 1 --shots 2 --size 32 --num-frames 8 -q &&
        "$program" data scan world/films -o videos.csv -q &&
        "$program" train-vae --recipe vae.toml --data world/stills.csv -o vae -q &&
        "$program" train --recipe t5.toml --data world/clips.csv -o t5 -q
}
prepare >/dev/null || { echo "the tiny files cannot be made" >&2; exit 2; }
film=$(ls world/films/*.mp4 | head -1)
# No server listens on the discard port: every row fails, which is a valid result.
printf 'url,text\nhttp://127.0.0.1:9/a.mp4,a fox\n' >urls.csv

# ---- The subcommands: arguments, and the file that must exist afterwards ("-": none) -----------
tiny=(--model "$fixtures/tiny-model" --allow-outside-paths --sampler dpm-solver --steps 2 --num-frames 2 --image-size 16x32 --device flex)
names=()
declare -A arguments made
subcommand() {
    local name=$1 file=$2
    shift 2
    names+=("$name")
    made[$name]=$file
    arguments[$name]=$(printf '%q ' "$@")
}
subcommand sample out/fox.mp4 sample "a fox" "${tiny[@]}" -o out/fox.mp4
subcommand verify - verify "$fixtures/goldens/vae-bin" --device flex
subcommand devices - devices
subcommand completions - completions bash
subcommand man out/man/opensora-sample.1 man -o out/man
subcommand bench - bench stdit --preset demo --num-frames 2 --image-size 16x24 --reps 1 --device flex
subcommand train out/run/metrics.csv train --recipe t5.toml --data world/clips.csv -o out/run --device flex
subcommand train-vae out/run/metrics.csv train-vae --recipe vae.toml --data world/stills.csv -o out/run --device flex
subcommand eval out/clips/report.json eval demo --prompts 2 "${tiny[@]/16x32/32x32}" -o out/clips
subcommand plot out/loss.svg plot t5 -o out/loss.svg
subcommand data-demo out/world/clips.csv data demo -o out/world --clips 2 --size 16 --num-frames 2
subcommand data-download out/clips.csv data download --list urls.csv --videos out/videos -o out/clips.csv --accept-license --attempts 1
subcommand data-scan out/videos.csv data scan world/films -o out/videos.csv
subcommand data-shots out/scores.csv data shots "$film" -o out/scores.csv
subcommand data-split out/clips.csv data split --data videos.csv -o out/clips.csv --fps source --shorter-side 32 --min-seconds 0.5
subcommand data-filter out/kept.csv data filter --data world/clips.csv -o out/kept.csv --min-frames 2
subcommand data-caption - data caption --data world/clips.csv -o out/captioned.csv --endpoint http://127.0.0.1:9 --model none --recaption --dry-run
subcommand data-clean out/clean.csv data clean --data world/clips.csv -o out/clean.csv
subcommand data-merge out/merged.csv data merge world/clips.csv world/stills.csv -o out/merged.csv
subcommand data-split-manifest out/all.0.csv data split-manifest --data world/clips.csv -o out/all.csv --parts 2
subcommand data-stats out/sheet.svg data stats world/clips.csv --probe -o out/sheet.svg
subcommand data-preview out/page.html data preview world/clips.csv -o out/page.html --count 2
subcommand data-run out/all.csv data run --config pipeline.toml
subcommand data-encode out/cache/index.json data encode --data world/clips.csv --vae vae/vae --t5 t5/t5 -o out/cache \
    --num-frames 2 --image-size 32x32 --max-length 16 --device flex
subcommand help - help sample
subcommand version - --version

# ---- Runs ----------------------------------------------------------------------------------------
failures=0
wrong() {
    failures=$((failures + 1))
    echo "WRONG: $name, $kind, run $run: $*"
    [ ! -s said ] || sed 's/^/    /' said
}
# Runs a subcommand under one condition. Sets `code` to its exit code; the file `said` gets its messages.
once() {
    local line="\"\$program\" ${arguments[$name]}"
    : >said
    case $kind in
    closed) eval "$line" 2>said >&- ;;
    head) eval "$line" 2>said | head -1 >first ;;
    gone) eval "$line" 2>said | true ;;
    full) eval "$line" 2>said >/dev/full ;;
    err-full) eval "$line" >first 2>/dev/full ;;
    err-gone) eval "$line" 2>&1 >first | true ;;
    esac
    code=${PIPESTATUS[0]}
}
check() {
    case $kind in
    closed | err-full | err-gone) [ "$code" = 0 ] || wrong "exit code $code, expected 0" ;;
    head | gone) [ "$code" = 0 ] || [ "$code" = 141 ] || wrong "exit code $code, expected 0 or 141" ;;
    full) [ "$code" = 1 ] || wrong "exit code $code, expected 1" ;;
    esac
    if [ "$kind" = full ]; then
        [ "$(grep -c '^error: standard output: No space left' said)" = 1 ] || wrong "expected one line about the full disk"
    else
        ! grep -q '^error' said || wrong "an error is reported"
    fi
    [ "$kind" != head ] || [ -s first ] || wrong "head got no line"
    ! grep -q panicked said || wrong "it panicked"
    local file=${made[$name]}
    [ "$file" = - ] || [ -s "$file" ] || wrong "$file is missing"
    local left
    left=$(find . -name '*.part' -o -name '.opensora-*' -o -name '.tmp*')
    [ -z "$left" ] || wrong "left behind: $left"
}

wanted=("$@")
[ ${#wanted[@]} -gt 0 ] || wanted=("${names[@]}")
for name in "${wanted[@]}"; do
    [ -n "${arguments[$name]:-}" ] || { echo "no subcommand '$name', known are ${names[*]}" >&2; exit 2; }
    began=$SECONDS before=$failures
    for kind in "${kinds[@]}"; do
        for ((run = 1; run <= repetitions; run++)); do
            rm -rf out
            mkdir out
            once
            check
        done
    done
    echo "$name: ${#kinds[@]} x $repetitions runs, $((failures - before)) wrong, $((SECONDS - began)) s"
done
[ "$failures" = 0 ] || { echo "$failures findings" >&2; exit 1; }
