#!/usr/bin/env bash
# Mutation testing: changes one operator or function body at a time and runs the tests, to find what no test notices.
#
#   scripts/mutants.sh [OPTION...] [CRATE...]
#   scripts/mutants.sh --sample 40 diffusion vae
#
#   --sample COUNT   about COUNT mutants of each crate: shard 0 of as many as it takes (default: all)
#   --shard K/N      each N-th mutant of each crate, from the K-th on (K from 0)
#   --file GLOB      mutants of matching files only, such as 'crates/nn/src/mask.rs'
#   --own            skip the second stage
#   --again          only the mutants that the last run with these crates missed: after adding tests
#   --jobs N         crates at the same time, each with a copy of the tree and builds of its own (default 1)
#   --in-place       mutate this checkout, with its own target directory; fails if files have changes
#
# CRATE is a folder of crates/ (default: those with most arithmetic, see `all` below).
#
# In the first stage a mutant must be caught by the tests of its own crate; in the second, those that were missed by
# tests of the crates that depend on it (`dependents` below). Prints a table: viable mutants (those that compile),
# percent caught by the crate's own tests, by all tests, and how many of the caught ones were timeouts. Lists the
# missed mutants, and exits with 1 if fewer than 90 % are caught by own tests, or fewer than 95 % by all.
#
# .cargo/mutants.toml excludes mutants that no test on this kind of machine can catch, with reasons. Needs
# python3 and `cargo install --locked cargo-mutants`. Environment: MUTANTS_DIR (default target/mutants) is the folder of
# copies, builds and results; CARGO_TARGET_DIR, if set, is used for builds with one job.
set -euo pipefail
exec </dev/null
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"

all=(gemm files nn checkpoint manifest shots vae stdit diffusion)

# Packages whose tests use a crate most.
dependents() {
    case $1 in
        gemm) echo opensora-nn ;;
        files) echo opensora-manifest opensora-checkpoint opensora-data opensora-train ;;
        nn) echo opensora-stdit opensora-vae opensora-t5 opensora-diffusion opensora-tests ;;
        manifest) echo opensora-prepare opensora-data opensora-cli ;;
        shots) echo opensora-prepare ;;
        *) echo opensora-tests ;; # the golden cases, checkpoints and pipelines
    esac
}

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; }
die() { echo "mutants.sh: $*" >&2; exit 2; }

sample= shard= file= own= again= jobs=1 in_place= crates=()
while [ $# -gt 0 ]; do
    case $1 in
        --sample) sample=${2:?}; shift ;;
        --shard) shard=${2:?}; shift ;;
        --file) file=${2:?}; shift ;;
        --own) own=yes ;;
        --again) again=yes ;;
        --jobs) jobs=${2:?}; shift ;;
        --in-place) in_place=yes ;;
        -h | --help) usage; exit ;;
        -*) die "unknown option $1; see --help" ;;
        *) crates+=("$1") ;;
    esac
    shift
done
[ ${#crates[@]} -gt 0 ] || crates=("${all[@]}")
for crate in "${crates[@]}"; do [ -f "crates/$crate/Cargo.toml" ] || die "no crate crates/$crate"; done
[ -z "$in_place" ] || [ "$jobs" = 1 ] || die "--in-place has one job"
cargo mutants --version >/dev/null 2>&1 || die "cargo-mutants is not installed"
work=${MUTANTS_DIR:-$root/target/mutants}
mkdir -p "$work"
work=$(cd "$work" && pwd)

# Prints the folder in which worker $1 mutates files, and brings a copy up to date. Files keep their modification
# times, so that cargo builds only what has changed.
tree() {
    if [ -n "$in_place" ]; then
        git diff --quiet HEAD -- crates || die "--in-place: files in crates/ have changes"
        echo "$root"
        return
    fi
    local tree=$work/tree-$1
    # Files that were deleted here must not stay there; the others keep their times.
    rm -rf "$tree"
    mkdir -p "$tree"
    git ls-files -z --cached --others --exclude-standard --deduplicate |
        python3 -c 'import os, sys; sys.stdout.write("\0".join(p for p in sys.stdin.read().split("\0") if os.path.lexists(p)))' >"$work/files-$1"
    tar -c --null --files-from "$work/files-$1" | tar -x -C "$tree"
    echo "$tree"
}

# Runs cargo-mutants in tree $1 on crate $2 with results in $3; further arguments are its options.
mutate() {
    local tree=$1 crate=$2 out=$3 status=0
    shift 3
    mkdir -p "$out"
    # Without doc tests, which are compiled anew in each run. Shards of every N-th mutant are samples of all files.
    (cd "$tree" && cargo mutants --in-place --package "opensora-$crate" --output "$out" --no-shuffle --caught \
        --cargo-arg=--tests "$@") || status=$?
    case $status in
        0 | 2 | 3) ;; # 2: some were missed, 3: some timed out
        *) die "cargo mutants: exit status $status" ;;
    esac
}

# Features of crate $1's documentation, without which its kernels or formats would not be compiled.
features() {
    python3 - "$1" <<'PY'
import sys, tomllib
package = tomllib.load(open(f"crates/{sys.argv[1]}/Cargo.toml", "rb"))["package"]
for feature in package.get("metadata", {}).get("docs", {}).get("rs", {}).get("features", []):
    print(f"--features={package['name']}/{feature}")
PY
}

# Turns a list of mutants into options that select exactly these.
only() { python3 -c 'import re, sys; [print("--re=^" + re.sub(r"([.^$*+?()\[\]{}|\\])", r"\\\1", line.rstrip("\n")) + "$") for line in sys.stdin]' <"$1"; }

# Both stages of crate $1 in worker $2.
examine() {
    local crate=$1 tree options=() count out=$work/results/$1
    tree=$(tree "$2")
    export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$([ -n "$in_place" ] && echo "$root/target" || echo "$work/target-$2")}
    [ -z "$file" ] || options+=(--file "$file")
    if [ -n "$again" ]; then
        [ -f "$out/missed" ] || die "--again: no results of $crate"
        [ -s "$out/missed" ] || return 0
        cp "$out/missed" "$out/again"
        mapfile -t -O ${#options[@]} options < <(only "$out/again")
    elif [ -n "$shard" ]; then
        options+=(--shard "$shard" --sharding round-robin)
    elif [ -n "$sample" ]; then
        count=$(cd "$tree" && cargo mutants --list --package "opensora-$crate" "${options[@]}" | wc -l)
        options+=(--shard "0/$(((count + sample - 1) / sample > 0 ? (count + sample - 1) / sample : 1))" --sharding round-robin)
    fi
    rm -rf "$out/own" "$out/all"
    echo "--- $crate: ${options[*]:0:4}"
    mutate "$tree" "$crate" "$out/own" $(features "$crate") "${options[@]}"
    cp "$out/own/mutants.out/missed.txt" "$out/missed"
    if [ -z "$own" ] && [ -s "$out/missed" ]; then
        mapfile -t options < <(only "$out/missed")
        for package in $(dependents "$crate"); do options+=(--test-package "$package"); done
        # They passed without mutants, and build for minutes.
        mutate "$tree" "$crate" "$out/all" "${options[@]}" --baseline=skip --timeout 300
    fi
}

if [ "$jobs" = 1 ]; then
    for crate in "${crates[@]}"; do examine "$crate" 0; done
else
    unset CARGO_TARGET_DIR
    pids=()
    for worker in $(seq 0 $((jobs - 1))); do
        (for ((i = worker; i < ${#crates[@]}; i += jobs)); do examine "${crates[i]}" "$worker"; done) &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid"; done
fi

python3 - "$work/results" "${crates[@]}" <<'PY'
import pathlib, sys

results, crates = pathlib.Path(sys.argv[1]), sys.argv[2:]
sums, missed_by_all, good = [0] * 4, [], True
print(f"\n{'crate':12}{'viable':>8}{'own tests':>11}{'all tests':>11}{'timeouts':>10}")


def lines(crate, stage, name):
    path = results / crate / stage / "mutants.out" / f"{name}.txt"
    return path.read_text().splitlines() if path.exists() else []


def row(name, viable, own, everything, timeouts):
    percent = lambda count: f"{100 * count / viable:.1f} %" if viable else "-"
    print(f"{name:12}{viable:8}{percent(own):>11}{percent(everything):>11}{timeouts:10}")


for crate in crates:
    caught, timeouts, missed = (lines(crate, "own", name) for name in ("caught", "timeout", "missed"))
    later = [mutant for name in ("caught", "timeout") for mutant in lines(crate, "all", name)]
    viable, own = len(caught) + len(timeouts) + len(missed), len(caught) + len(timeouts)
    counts = [viable, own, own + len(later), len(timeouts)]
    row(crate, *counts)
    sums = [a + b for a, b in zip(sums, counts)]
    good &= own >= 0.9 * viable and own + len(later) >= 0.95 * viable
    missed_by_all += [f"{mutant}{' (caught by other crates)' if mutant in later else ''}" for mutant in missed]
row("together", *sums)
print("\nmissed by the crate's own tests:" if missed_by_all else "", *missed_by_all, sep="\n")
sys.exit(0 if good else 1)
PY
