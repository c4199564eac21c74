#!/usr/bin/env bash
# Tests ranks that are processes of MPI, on one machine.
#
#   scripts/mpi-tests.sh [TEST...]
#
# TEST is any of these (default: all, in this order):
#
#   collectives   on 1, 2 and 4 ranks, bit for bit equal to ranks that are threads
#   failures      a rank that fails, panics, returns early or calls another collective ends all with one message
#   patience      a rank may compute for longer than the watchdog's limit
#   signals       a rank that is killed or stopped ends all within 30 s, also if the launcher does not help
#   training      `opensora train` on 1, 2 and 4 ranks: equal losses, failures, resumes (scripts/mpi_train.py)
#   sampling      `opensora sample` on 1, 2 and 4 ranks: equal latents and records (scripts/mpi_sample.py)
#
# Needs Open MPI with its headers and libclang (Debian: openmpi-bin libopenmpi-dev libclang-dev), and installs nothing.
# All packages of the workspace are selected, so that a build of their tests with this feature is used again.
set -euo pipefail
exec </dev/null
cd "$(dirname "$0")/.."

tests=("$@")
[ ${#tests[@]} -gt 0 ] || tests=(collectives failures patience signals training sampling)

work=$(mktemp -d)
began=$SECONDS
launched=
cleanup() {
    [ -z "$launched" ] || kill -KILL "$launched" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
fail() {
    echo "FAILED: $*" >&2
    [ ! -s "$work/said" ] || sed 's/^/    /' "$work/said" | tail -n 40 >&2
    exit 1
}
ok() { printf 'ok  %s (%d s)\n' "$*" $((SECONDS - test_began)); }

# Containers run as root and may not read each other's memory.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_btl_vader_single_copy_mechanism=none
# A rank a core, so that the tests do not depend on the number of cores.
export RAYON_NUM_THREADS=1

command -v mpirun >/dev/null || fail "no mpirun: install openmpi-bin libopenmpi-dev libclang-dev"
cargo build --workspace --locked --features opensora-cli/mpi --bin opensora --example mpi_check
built=${CARGO_TARGET_DIR:-target}/debug
check=$built/examples/mpi_check

# expect_failure RANKS PATTERN COMMAND...: fails within 30 s, with one line that matches PATTERN.
expect_failure() {
    local count=$1 pattern=$2 start=$SECONDS status=0
    shift 2
    timeout -k 5 60 mpirun --oversubscribe -n "$count" "$@" >"$work/said" 2>&1 || status=$?
    [ $status -ne 0 ] || fail "$*: succeeded"
    [ $((SECONDS - start)) -le 30 ] || fail "$*: took $((SECONDS - start)) s"
    expect_one_line "$pattern"
}
expect_one_line() {
    local found
    found=$(grep -cE "$1" "$work/said" || true)
    [ "$found" = 1 ] || fail "found $found lines like '$1', expected 1"
}

test_collectives() {
    for count in 1 2 4; do
        timeout 120 mpirun --oversubscribe -n $count "$check" check || fail "collectives on $count ranks"
    done
}

test_failures() {
    expect_failure 3 '^rank 1: clip.mp4: found no video stream$' "$check" abort
    expect_failure 3 '^rank 1: panicked$' "$check" panic
    expect_failure 3 '^rank 1: returned early$' "$check" return
    expect_failure 3 '^all ranks have waited for 6 s in collectives that do not match: rank 0 in barrier' \
        "$check" deadlock 2
}

test_patience() {
    timeout 60 mpirun --oversubscribe -n 4 "$check" compute 3 >"$work/said" 2>&1 || fail "computing for 6 s"
    expect_one_line '^computed$'
}

# Starts ranks that work without end; sets `launched` and the array `processes`.
start_work() {
    : >"$work/said"
    mpirun --oversubscribe -n 3 "$check" work >"$work/said" 2>&1 &
    launched=$!
    local rank waited=0
    processes=()
    for rank in 0 1 2; do
        until grep -q "^rank $rank process" "$work/said"; do
            [ $((waited += 1)) -le 300 ] || fail "rank $rank did not start"
            sleep 0.1
        done
        processes[rank]=$(sed -n "s/^rank $rank process //p" "$work/said" | head -n 1)
    done
    sleep 1
}

# until_end SECONDS PROCESS...: all processes end in time.
until_end() {
    local until=$((SECONDS + $1)) limit=$1 process
    shift
    for process in "$@"; do
        # A launcher that is stopped leaves its children as zombies.
        while [ -e "/proc/$process" ] && ! grep -q '^State:.*Z' "/proc/$process/status" 2>/dev/null; do
            [ $SECONDS -lt $until ] || fail "process $process still runs after $limit s"
            sleep 0.2
        done
    done
}

# expect_end: all ranks and the launcher end within 30 s, the launcher with an error.
expect_end() {
    local status=0
    until_end 30 "${processes[@]}" "$launched"
    wait "$launched" || status=$?
    launched=
    [ $status -ne 0 ] || fail "the launcher succeeded"
}

test_signals() {
    local rank
    # Open MPI ends the others itself.
    start_work
    kill -KILL "${processes[1]}"
    expect_end
    for rank in 0 2; do
        start_work
        kill -STOP "${processes[rank]}"
        expect_end
        expect_one_line "^rank $rank \(.*, process ${processes[rank]}\) has not answered for 20 s: it is stopped"
    done
    # A launcher that does nothing: the ranks end themselves.
    for rank in 0 2; do
        start_work
        kill -STOP "$launched"
        kill -KILL "${processes[rank]}"
        until_end 30 "${processes[@]}"
        kill -CONT "$launched"
        expect_end
        expect_one_line "^rank $rank \(.*\) ended before the others$"
    done
}

test_training() {
    python3 scripts/mpi_train.py "$built/opensora"
}

test_sampling() {
    python3 scripts/mpi_sample.py "$built/opensora"
}

for test in "${tests[@]}"; do
    test_began=$SECONDS
    "test_$test"
    ok "$test"
done
printf 'all MPI tests passed (%d s)\n' $((SECONDS - began))
