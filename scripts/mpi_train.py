#!/usr/bin/env python3
"""Trains over the ranks of mpirun: equality with one process, failures, resumes with other numbers of ranks.

usage: scripts/mpi_train.py PROGRAM [STEP...]

PROGRAM is `opensora`, built with `--features mpi`. Needs `mpirun`. STEP is any of equality, errors, stop and failures
(default: these), memory (peak memory of ranks with a model whose state dominates) and speed (two ranks of one
thread against one process of two, for an STDiT of depth 2 and for the demo model's denoiser).
"""

import csv
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

VAE = """
[vae]
[vae.config]
block_out_channels = [8, 8, 8]
layers_per_block = 1
norm_num_groups = 4
[data.clip]
num_frames = 1
image_size = [32, 32]
[run]
steps = 2
batch_size = 2
"""

T5 = """
[t5]
max_length = 16
[t5.config]
vocab_size = 256
d_model = 16
d_kv = 8
d_ff = 32
num_layers = 1
num_heads = 2
[run]
steps = 2
batch_size = 2
"""

STDIT = """
[stdit.config]
caption_channels = 16
model_max_length = 16
hidden_size = 32
depth = 2
num_heads = 2
space_scale = 0.5
[data.clip]
num_frames = 4
frame_interval = 1
image_size = [32, 32]
horizontal_flip = false
variants = 1
[optimizer]
learning_rate = 1e-3
[run]
steps = STEPS
batch_size = 8
workers = 1
checkpoint_every = 5
sample_every = 20
[sample]
prompts = ["a red circle grows on a black background"]
steps = 2
"""

# The demo model's denoiser on clips of 8 frames of 48x48, without checkpoints and samples.
DEMO = """
[stdit.loss]
caption_dropout = 0.1
prediction_type = "v_prediction"
[stdit.config]
caption_channels = 64
model_max_length = 32
hidden_size = 128
depth = 4
num_heads = 4
[data.clip]
num_frames = 8
frame_interval = 2
image_size = [48, 48]
horizontal_flip = false
variants = 1
[optimizer]
learning_rate = 1e-3
betas = [0.9, 0.99]
ema_decay = 0.998
[run]
steps = STEPS
batch_size = 16
workers = 0
checkpoint_every = 100000
"""

ENVIRONMENT = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OPENSORA_NO_TRIAL="1")
PROGRAM = os.path.abspath(sys.argv[1]) if len(sys.argv) > 1 else sys.exit(__doc__)


def command(ranks, *args):
    """The command line of a program on some ranks; of one process for one rank."""
    launcher = ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(ranks)] if ranks > 1 else []
    return [*launcher, PROGRAM, *args]


def ok(*args, ranks=1):
    run = subprocess.run(command(ranks, *args), env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    if run.returncode != 0:
        sys.exit(f"{args}: code {run.returncode}\n{run.stdout}{run.stderr}")
    return run.stdout


def train(out, *more, recipe="stdit.toml"):
    return ["train", "--recipe", recipe, "--cache", "cache", "--vae", "vae/vae", "--t5", "t5/t5", "-o", out, *more]


def prepare():
    for name, text in [("vae", VAE), ("t5", T5), ("stdit", STDIT.replace("STEPS", "30"))]:
        with open(f"{name}.toml", "w") as file:
            file.write(text)
    with open("long.toml", "w") as file:
        file.write(STDIT.replace("STEPS", "100000"))
    ok("data", "demo", "--out", "data", "--clips", "12", "--stills", "4", "--size", "32", "--num-frames", "6")
    ok("train-vae", "--recipe", "vae.toml", "--data", "data/stills.csv", "-o", "vae")
    ok("train", "--recipe", "t5.toml", "--data", "data/clips.csv", "-o", "t5")
    ok("data", "encode", "--data", "data/clips.csv", "--vae", "vae/vae", "--t5", "t5/t5", "-o", "cache",
       "--num-frames", "4", "--image-size", "32x32", "--max-length", "16", "--quiet")


def column(run, name):
    with open(f"{run}/metrics.csv") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def compare(run, wanted, limit=1e-5):
    found = column(run, "loss")
    assert len(found) == len(wanted), (run, len(found), len(wanted))
    worst = max(abs(a - b) / abs(b) for a, b in zip(found, wanted))
    assert worst < limit, f"{run}: losses differ by {worst:.1e}"
    return worst


def equality():
    ok(*train("one"))
    wanted = column("one", "loss")
    for ranks in [2, 4]:
        for zero in ["0", "1", "2"]:
            run = f"{ranks}-{zero}"
            said = ok(*train(run, "--zero", zero), ranks=ranks)
            assert said.count("finished at step 30") == 1, said
            print(f"{ranks} ranks, zero {zero}: losses differ by at most {compare(run, wanted):.1e}", flush=True)
            for part in ["stdit/ema.safetensors", "model.json", "samples/step-00000020.png"]:
                assert os.path.exists(f"{run}/{part}"), part
            for previous in ["0", "1"]:
                if os.path.exists(f"{ranks}-{previous}"):
                    same = [open(f"{name}/stdit/{part}.safetensors", "rb").read()
                            for name in (run, f"{ranks}-{previous}") for part in ("ema", "model")]
                    assert same[:2] == same[2:], f"{run}: weights differ from those of zero {previous}"
    for ranks in [2, 4]:
        run = f"{ranks}-sequence"
        ok(*train(run, "--sequence", "2", "--zero", "2"), ranks=ranks)
        print(f"{ranks} ranks, two share samples: losses differ by at most {compare(run, wanted):.1e}", flush=True)
    return wanted


def started(out, ranks, rows, *more, args=None):
    """Starts a long run and waits for some rows of its metrics. Returns the process and the ids of its ranks."""
    shutil.rmtree(out, ignore_errors=True)
    args = args or command(ranks, *train(out, "--quiet", *more, recipe="long.toml"))
    run = subprocess.Popen(args, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 120
    while time.time() < deadline:
        if os.path.exists(f"{out}/metrics.csv") and len(column(out, "loss")) >= rows:
            break
        assert run.poll() is None, run.communicate()
        time.sleep(0.1)
    else:
        run.terminate()
        raise TimeoutError(f"{out}: fewer than {rows} steps after 120 s: {run.communicate()}")
    children = open(f"/proc/{run.pid}/task/{run.pid}/children").read().split()
    ids = {}
    for child in map(int, children):
        for item in open(f"/proc/{child}/environ").read().split("\0"):
            if item.startswith("OMPI_COMM_WORLD_RANK="):
                ids[int(item.split("=")[1])] = child
    assert len(ids) == ranks, ids
    return run, ids


def failures():
    for name, rank in [("SIGKILL", 2), ("SIGSTOP", 1), ("SIGKILL", 0)]:
        out = f"{name}-{rank}"
        run, ids = started(out, 4, 12, "--zero", "2")
        began = time.time()
        os.kill(ids[rank], getattr(signal, name))
        try:
            said = run.communicate(timeout=60)
        finally:
            for process in ids.values():
                try:
                    os.kill(process, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        seconds = time.time() - began
        assert run.returncode != 0 and seconds < 30, (name, run.returncode, seconds, said)
        lines = [line for line in said[1].splitlines() if line.startswith("error: ")]
        print(f"{name} of rank {rank}: all ended after {seconds:.1f} s: {lines}", flush=True)
        # The launcher may end the ranks before one of them reports a killed one; only ranks notice a stopped one.
        assert len(lines) == 1 if name == "SIGSTOP" else len(lines) <= 1, said[1]
        steps = sorted(os.listdir(f"{out}/checkpoints"))
        complete = [step for step in steps if os.path.exists(f"{out}/checkpoints/{step}/state.json")
                    and step.startswith("step-")]
        assert complete, steps
    # The newest checkpoint of the killed run, of four ranks, continues on two, and then in one process.
    done = int(complete[-1].split("-")[1])
    for ranks, more in [(2, 5), (1, 10)]:
        ok(*train(out, "--resume", "--steps", str(done + more), "--zero", "1", recipe="long.toml"), ranks=ranks)
    assert column(out, "step") == [float(step) for step in range(1, done + 11)]
    shutil.rmtree("whole", ignore_errors=True)
    ok(*train("whole", "--steps", str(done + 10), recipe="long.toml"))
    print(f"killed, resumed on 2 ranks and on 1: losses differ by at most {compare(out, column('whole', 'loss'), 1e-4):.1e}")


def stop():
    run, ids = started("stopped", 2, 3)
    os.kill(ids[1], signal.SIGTERM)
    said = run.communicate(timeout=60)
    assert run.returncode != 0
    assert sum(line.startswith("error: ") for line in said[1].splitlines()) == 1, said[1]
    assert os.listdir("stopped/checkpoints"), said
    print("SIGTERM of one rank: all stopped with a checkpoint")


def errors():
    cases = [("bad file", train("bad", "--init", "vae.toml")), ("bad option", train("bad", "--zero", "7")),
             ("bad command line", train("bad", "--steps", "x")),
             ("missing latents", ["sample", "a red circle", "--latents", "none.safetensors", "-o", "bad.gif"])]
    for what, args in cases:
        run = subprocess.run(command(2, *args), env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
        lines = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
        assert run.returncode != 0 and len(lines) == 1, run.stderr
        print(f"{what}: {lines[0]}")


def memory():
    """Peak memory of the ranks, with and without ZeRO, for a denoiser of 71 million parameters."""
    wide = STDIT.replace("STEPS", "100000").replace("hidden_size = 32\ndepth = 2", "hidden_size = 768\ndepth = 6")
    with open("long.toml", "w") as file:
        file.write(wide.replace("num_heads = 2", "num_heads = 12").replace("every = 5", "every = 100000"))
    for ranks, zero in [(1, "0"), (2, "0"), (2, "2"), (4, "2")]:
        if ranks == 1:
            # As a rank of mpirun, so that its process is found in the same way.
            args = ["mpirun", "--bind-to", "none", "-n", "1", *command(1, *train("memory", "--quiet", recipe="long.toml"))]
        else:
            args = None
        run, ids = started("memory", ranks, 3, "--zero", zero, args=args)
        peaks = []
        for process in ids.values():
            for line in open(f"/proc/{process}/status"):
                if line.startswith("VmHWM:"):
                    peaks.append(int(line.split()[1]) / 1024)
        for process in ids.values():
            os.kill(process, signal.SIGKILL)
        run.communicate()
        print(f"{ranks} ranks, zero {zero}: peak of a rank {max(peaks):.0f} MiB, of all {sum(peaks):.0f} MiB", flush=True)


def speed():
    """Speed of two ranks of one thread and of one process of two threads, in turns, for two models."""
    small = STDIT.replace("STEPS", "42").replace("hidden_size = 32", "hidden_size = 256")
    small = small.replace("num_heads = 2", "num_heads = 4").replace("every = 5", "every = 100000")
    clip = ["--num-frames", "8", "--frame-interval", "2", "--image-size", "48x48", "--max-length", "32"]
    ok("data", "demo", "--out", "world", "--clips", "64", "--size", "48")
    ok("data", "encode", "--data", "world/clips.csv", "--model", "demo", "-o", "world/cache", "--quiet", *clip)
    cases = [("STDiT of width 256, depth 2", small.replace("every = 20", "every = 0"), train),
             ("demo, 8 frames", DEMO.replace("STEPS", "22"), demo_train)]
    for name, recipe, args in cases:
        with open("speed.toml", "w") as file:
            file.write(recipe)
        compare_speed(name, args)


def demo_train(out, *more, recipe):
    return ["train", "--recipe", recipe, "--cache", "world/cache", "-o", out, *more]


def compare_speed(name, args):
    """Prints rates, and CPU time with that of waiting: ranks of Open MPI wait in a loop."""
    rates, spent = {1: [], 2: []}, {1: [], 2: []}
    for _ in range(5):
        for ranks in rates:
            ENVIRONMENT["RAYON_NUM_THREADS"] = str(2 // ranks)
            shutil.rmtree("speed", ignore_errors=True)
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            ok(*args("speed", "--peak-tflops", "1", recipe="speed.toml"), ranks=ranks)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            spent[ranks].append(seconds / column("speed", "samples")[-1])
            rates[ranks].append(statistics.median(column("speed", "samples_per_second")[2:]))
    for ranks, what in [(1, "one process of two threads"), (2, "two ranks of one thread")]:
        rate, cpu = statistics.median(rates[ranks]), 1000 * statistics.median(spent[ranks])
        print(f"{name}: {what}: {rate:.2f} samples/s, {cpu:.1f} ms of CPU time a sample, start included")
    # Of neighbours in time, since other programs disturb both.
    ratio = statistics.median(two / one for one, two in zip(rates[1], rates[2]))
    print(f"{name}: two ranks have {ratio:.3f} of the rate of one process; all runs: {rates}", flush=True)


def main():
    steps = {step.__name__: step for step in [equality, errors, stop, failures, memory, speed]}
    names = sys.argv[2:] or ["equality", "errors", "stop", "failures"]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for step in [prepare, *(steps[name] for name in names)]:
            began = time.time()
            step()
            print(f"{step.__name__}: {time.time() - began:.0f} s", flush=True)
        os.chdir("/")


main()
