#!/usr/bin/env bash
# Makes a CPU libtorch for the `tch` backend from packages of the Python package index.
#
#   eval "$(scripts/libtorch.sh DEST)"
#   cargo test -p opensora-tests --features tch
#
# For machines that reach package registries only: elsewhere the build of `torch-sys` downloads libtorch itself. The index
# has no PyTorch wheel for Linux without the CUDA libraries, so 900 MB are downloaded and 490 MB kept: libtorch_cuda.so is left out, and
# two small CUDA libraries that libtorch_cpu.so is linked against are added.
#
# DEST appears when it is complete; if it exists already, nothing is done. Standard output is two exports: LIBTORCH for
# the build, LD_LIBRARY_PATH for every run.
# For Linux on x86-64, with python3, its pip and a C compiler.
set -euo pipefail

torch=2.9.0 # exactly what tch 0.22 is made for
cupti=12.8.90
cudart=12.8.90

fail() {
    echo "libtorch.sh: $*" >&2
    exit 1
}

[ $# -eq 1 ] || fail "usage: scripts/libtorch.sh DEST"
[ "$(uname -sm)" = "Linux x86_64" ] || fail "made for Linux x86_64, this is $(uname -sm)"
mkdir -p "$(dirname "$1")"
dest=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
marker=torch-$torch-cpu

if [ ! -e "$dest/$marker" ]; then
    # This script writes DEST complete or not at all, and does not replace anything else.
    [ ! -e "$dest" ] || fail "$dest exists and is not libtorch $torch from this script: remove it, or name another folder"
    work=$(mktemp -d "$dest.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    mkdir "$work/wheels" "$work/libtorch"

    # The libraries do not depend on Python's version: a fixed one, for which all three wheels exist, gives the same files
    # under any Python.
    python3 -m pip download --quiet --no-cache-dir --no-deps --only-binary=:all: \
        --python-version 3.11 --implementation cp --abi cp311 --abi none \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
        --dest "$work/wheels" \
        "torch==$torch" "nvidia-cuda-cupti-cu12==$cupti" "nvidia-cuda-runtime-cu12==$cudart" >&2

    python3 - "$work/wheels" "$work/libtorch" >&2 <<'PYTHON'
import pathlib, re, shutil, sys, zipfile

wheels, libtorch = map(pathlib.Path, sys.argv[1:])
wanted = re.compile(
    r"torch/(include/.+)"
    r"|torch/(lib/(?:libtorch_cpu|libtorch_global_deps|libc10)\.so)"
    r"|torch/(lib/libgomp[^/]*\.so[^/]*)"
    r"|nvidia/cuda_cupti/(lib/libcupti\.so\.12)"
    r"|nvidia/cuda_runtime/(lib/libcudart\.so\.12)"
)
for wheel in sorted(wheels.glob("*.whl")):
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            match = wanted.fullmatch(entry.filename)
            if match is None or entry.is_dir():
                continue
            target = libtorch / match[match.lastindex]
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as source, open(target, "wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
PYTHON

    # The wheel's libtorch.so depends on CUDA. --no-as-needed keeps both libraries although no code refers to them.
    (cd "$work/libtorch/lib" \
        && cc -shared -o libtorch.so -L. -Wl,--no-as-needed -ltorch_cpu -lc10 -Wl,-rpath,'$ORIGIN')

    missing=$(LD_LIBRARY_PATH=$work/libtorch/lib ldd "$work/libtorch/lib/libtorch.so" | grep 'not found' || true)
    [ -z "$missing" ] || fail "libtorch.so needs libraries that are not here: $missing"

    touch "$work/libtorch/$marker"
    # -T: fails if another run has created the folder meanwhile, instead of moving into it.
    mv -T "$work/libtorch" "$dest"
fi

printf 'export LIBTORCH=%q\n' "$dest"
printf 'export LD_LIBRARY_PATH=%q${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}\n' "$dest/lib"
