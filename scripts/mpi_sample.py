#!/usr/bin/env python3
"""Samples over the ranks of mpirun: the latents and the record of one process, one file, one error line.

usage: scripts/mpi_sample.py PROGRAM

PROGRAM is `opensora`, built with `--features mpi`. Needs `mpirun`. Uses the bundled model.
"""

import json
import os
import struct
import subprocess
import sys
import tempfile

ENVIRONMENT = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OPENSORA_NO_TRIAL="1")
PROGRAM = os.path.abspath(sys.argv[1]) if len(sys.argv) == 2 else sys.exit(__doc__)
# Seven frames, which no number of ranks divides.
REQUEST = ["a red circle grows on a black background", "--num-frames", "7", "--steps", "4", "--sampler", "dpm-solver",
           "--quiet"]


def sample(name, ranks, *more):
    """Samples to NAME.mp4 and NAME.safetensors; returns the program's result."""
    launcher = ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(ranks)] if ranks > 1 else []
    out = ["-o", f"{name}.mp4", "--save-latents", f"{name}.safetensors"]
    return subprocess.run([*launcher, PROGRAM, "sample", *REQUEST, *out, *more], env=ENVIRONMENT, capture_output=True,
                          text=True, timeout=300)


def latents(name):
    with open(f"{name}.safetensors", "rb") as file:
        length, = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        values = file.read()
    assert header["latents"]["dtype"] == "F32", header
    return header["latents"]["shape"], struct.unpack(f"<{len(values) // 4}f", values)


def record(name):
    with open(f"{name}.mp4.json") as file:
        return json.load(file)


def main():
    run = sample("one", 1)
    assert run.returncode == 0, run.stderr
    shape, wanted = latents("one")
    scale = max(1.0, *map(abs, wanted))
    for ranks, divide in [(2, "frames"), (4, "frames"), (2, "guidance"), (4, "guidance")]:
        name = f"{divide}-{ranks}"
        run = sample(name, ranks, "--divide", divide)
        assert run.returncode == 0, f"{name}: {run.stderr}"
        assert run.stdout.splitlines() == [f"{name}.mp4"], f"{name}: {run.stdout}"
        found_shape, found = latents(name)
        assert found_shape == shape, (name, found_shape, shape)
        worst = max(abs(a - b) for a, b in zip(found, wanted)) / scale
        assert worst <= 1e-4, f"{name}: latents differ by {worst:.1e}"
        assert os.path.getsize(f"{name}.mp4") > 0
        ours, theirs = record(name), record("one")
        same = [key for key in theirs if key != "denoiser_work"]
        assert {key: ours.get(key) for key in same} == {key: theirs[key] for key in same}, name
        print(f"{ranks} ranks by {divide}: latents within {worst:.1e}")

    run = sample("odd", 3, "--divide", "guidance")
    assert run.returncode != 0 and not os.path.exists("odd.mp4")
    assert (run.stdout + run.stderr).count("there are 3 ranks") == 1, run.stderr


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        main()
