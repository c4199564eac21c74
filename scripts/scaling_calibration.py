"""Measures this machine, predicts training steps on 1, 2 and 4 ranks, and compares the predictions with real steps.

    cargo build --release -p opensora-cli --features mpi
    cargo build --release -p opensora-parallel --features mpi --example collectives
    python3 scripts/scaling_calibration.py target/release/opensora --collectives target/release/examples/collectives

Needs an MPI library with `mpirun`, and no Python packages. The machine should be idle. Prints a table in Markdown for
`docs/scaling.md`; with `--json FILE`, also writes all numbers.

What is measured for the predictions, and never with the runs that are predicted:

| value of `opensora plan` | measurement |
|---|---|
| `--peak-tflops` | training steps of N independent processes at once, each with the work of one of N ranks |
| `--memory-bandwidth` | copies of a large buffer by N processes at once |
| `--node-bandwidth`, `--node-latency` | all collectives at sizes from 4 KiB to 16 MiB, by least squares |

N independent processes rather than one, since ranks of a machine share its caches and memory. Each process has one
thread. With more ranks than cores, both measurements are of processes that share cores.
"""

import argparse
import csv
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing import Barrier, Process, Queue
from pathlib import Path

# Name, options of `opensora plan`, keys of [stdit.config] and clips of a step. Tokens of a clip: 8 x 6 x 6.
CASES = [
    ("demo, 8 frames", [], {"hidden_size": 128, "depth": 4, "num_heads": 4}, 16),
    (
        "STDiT, width 1152, depth 2",
        ["--hidden-size", "1152", "--depth", "2", "--num-heads", "16"],
        {"hidden_size": 1152, "depth": 2, "num_heads": 16},
        4,
    ),
]
CLIP = ["--num-frames", "8", "--image-size", "48x48"]
RECIPE = """
[stdit]
[stdit.loss]
activation_checkpointing = false
[stdit.config]
caption_channels = 64
model_max_length = 32
{config}
[data.clip]
num_frames = 8
frame_interval = 2
image_size = [48, 48]
horizontal_flip = false
[optimizer]
learning_rate = 1e-4
[run]
steps = {steps}
batch_size = {clips}
seed = 1
workers = 0
checkpoint_every = 100000
"""
# Steps that are not counted: allocation, first use of every layer.
WARM_UP = 4


def run(command, **options):
    """Runs a command; ends the script with its output if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), **options)
    if done.returncode != 0:
        sys.exit(f"{shlex.join(map(str, command))}\nfailed:\n{done.stderr}")
    return done.stdout


def environment():
    """The environment of all programs: one thread for each process."""
    return {**os.environ, "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def recipe(path, config, clips, steps):
    lines = "\n".join(f"{key} = {value}" for key, value in config.items())
    path.write_text(RECIPE.format(config=lines, clips=clips, steps=steps))
    return path


def step_seconds(folder):
    """Seconds of a step, and the share of collectives if the run's table has it."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    counted = rows[WARM_UP:]
    seconds = (float(rows[-1]["seconds"]) - float(rows[WARM_UP - 1]["seconds"])) / len(counted)
    names = [name for name in rows[-1] if "collective" in name or "communication" in name]
    shares = [float(row[names[0]]) for row in counted if names and row[names[0]]]
    return seconds, statistics.mean(shares) if shares else None


def train(args, work, path, name, ranks, options):
    """Trains with `ranks` ranks and returns the numbers of its steps."""
    launcher = [] if ranks == 1 else [*shlex.split(args.mpirun), "-n", str(ranks)]
    out = work / name
    command = [*launcher, args.program, "train", "--recipe", path, "--cache", work / "cache"]
    run([*command, "-o", out, "--device", "flex", "--quiet", "--peak-tflops", "1", *options])
    return step_seconds(out)


def alone(args, work, path, name, count):
    """Mean step of `count` independent processes at once."""
    command = [args.program, "train", "--recipe", path, "--cache", work / "cache"]
    command += ["--device", "flex", "--quiet", "--peak-tflops", "1", "-o"]
    folders = [work / f"{name}-{index}" for index in range(count)]
    running = [
        subprocess.Popen(
            [*command, folder],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for folder in folders
    ]
    for process in running:
        _, error = process.communicate()
        if process.returncode != 0:
            sys.exit(f"{shlex.join(map(str, command))}\nfailed:\n{error}")
    return statistics.mean(step_seconds(folder)[0] for folder in folders)


def copy(barrier, results, size, times):
    """Puts the bytes per second that copies of a buffer read and write into `results`."""
    source, target = bytearray(size), bytearray(size)
    view = memoryview(target)
    view[:] = source
    barrier.wait()
    began = time.perf_counter()
    for _ in range(times):
        view[:] = source
    results.put(2 * size * times / (time.perf_counter() - began))


def copy_bandwidth(count):
    """Bytes per second that each of `count` processes reads and writes when all copy a large buffer."""
    barrier, results = Barrier(count), Queue()
    arguments = (barrier, results, 64 << 20, 8)
    processes = [Process(target=copy, args=arguments) for _ in range(count)]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return statistics.mean(found)


def links(args, ranks):
    """Bandwidth and latency by the formulae of `opensora plan`, from the collectives of `ranks` ranks."""
    command = [*shlex.split(args.mpirun), "-n", str(ranks), args.collectives]
    samples = [json.loads(line) for line in run(command).splitlines() if line.startswith("{")]
    points = []
    for sample in samples:
        times = 2 if sample["collective"] == "all_reduce" else 1
        messages = times * (ranks - 1)
        moved = times * sample["bytes"] * (ranks - 1) / ranks
        points.append((messages, moved, sample["seconds"]))
    # Least squares of relative errors, so that small messages count as much as large ones:
    # minimise sum((a messages + b moved - seconds)^2 / seconds^2).
    sums = [[0.0] * 3 for _ in range(2)]
    for messages, moved, seconds in points:
        x = (messages / seconds, moved / seconds)
        for row in range(2):
            for column in range(2):
                sums[row][column] += x[row] * x[column]
            sums[row][2] += x[row]
    (aa, ab, a), (_, bb, b) = sums
    determinant = aa * bb - ab * ab
    latency = max((a * bb - b * ab) / determinant, 0.0)
    per_byte = (aa * b - ab * a) / determinant
    if per_byte <= 0:
        sys.exit(f"the collectives of {ranks} ranks do not take longer for more bytes: {samples}")
    return 1 / per_byte, latency, samples


def plan(args, options):
    output = run([args.program, "plan", "--preset", "demo", "--dtype", "f32", "--json", *options])
    return json.loads(output)["layouts"][0]


def layouts(ranks):
    """Layouts of `ranks` ranks: name, sequence groups, stage of ZeRO."""
    found = [("data", 1, 0)]
    if ranks > 1:
        found += [("data, ZeRO 1", 1, 1), ("data, ZeRO 2", 1, 2), (f"sequence {ranks}", ranks, 0)]
    if ranks > 2:
        found.append((f"data {ranks // 2} x sequence 2, ZeRO 2", 2, 2))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", type=Path, help="opensora, built with the feature mpi")
    parser.add_argument("--collectives", type=Path, required=True, help="example of opensora-parallel")
    parser.add_argument("--mpirun", default="mpirun --oversubscribe", help="launcher, without -n")
    parser.add_argument("--ranks", default="1,2,4", help="numbers of ranks")
    parser.add_argument("--steps", type=int, default=24, help="steps of a run")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each; the median counts")
    parser.add_argument("--case", type=int, choices=range(len(CASES)), help="one model only")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    args = parser.parse_args()
    args.program = args.program.resolve()
    args.collectives = args.collectives.resolve()
    counts = [int(count) for count in args.ranks.split(",")]

    with tempfile.TemporaryDirectory() as work:
        numbers = measure(args, Path(work), counts)
    print_tables(numbers)
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=1))


def measure(args, work, counts):
    run([args.program, "data", "demo", "-o", work / "world", "--clips", "64", "--size", "48"])
    encode = [args.program, "data", "encode", "--data", work / "world/clips.csv", "--model", "demo"]
    encode += ["--out", work / "cache", "--frame-interval", "2", "--max-length", "32", *CLIP]
    run(encode)
    machine, rows = [], []
    for ranks in counts:
        bandwidth, latency, samples = links(args, ranks) if ranks > 1 else (1e12, 0.0, [])
        memory = copy_bandwidth(ranks)
        machine.append({
            "ranks": ranks, "bandwidth": bandwidth, "latency": latency, "memory": memory,
            "collectives": samples,
        })
        for name, options, config, clips in CASES if args.case is None else [CASES[args.case]]:
            rows += compare(args, work, machine[-1], (name, options, config, clips))
    return {"machine": machine, "rows": rows}


def compare(args, work, machine, case):
    """Predictions and measurements of all layouts of one case on one number of ranks."""
    (name, model, config, clips), ranks = case, machine["ranks"]
    tag = f"{ranks}-{config['hidden_size']}"
    common = [*model, *CLIP, "--activation-checkpointing=false", "--accumulation", "1"]
    common += ["--tokens", "32", "--efficiency", "1", "--memory", "1000"]
    common += ["--processor", "cpu", "--memory-bandwidth", str(machine["memory"] / 1e9)]

    # The rate of a rank: its share of the step, alone in each of as many processes.
    path = recipe(work / f"{tag}.toml", config, clips // ranks, args.steps)
    seconds = statistics.median(
        alone(args, work, path, f"{tag}-alone{turn}", ranks) for turn in range(args.repeat)
    )
    one = [*common, "--batch-size", str(clips // ranks), "--ranks", "1", "--peak-tflops", "1"]
    solo = plan(args, one)["time"]
    if seconds <= solo["update"]:
        sys.exit(f"{name}: a step takes {seconds} s, its update alone {solo['update']} s by memory")
    tflops = solo["compute"] / (seconds - solo["update"])

    rows = []
    path = recipe(work / f"{tag}-run.toml", config, clips, args.steps)
    for number, (layout, sequence, zero) in enumerate(layouts(ranks)):
        layout_options = ["--sequence", str(sequence), "--zero", str(zero)]
        options = layout_options if ranks > 1 else []
        folders = [f"{tag}-layout{number}-{turn}" for turn in range(args.repeat)]
        runs = [train(args, work, path, folder, ranks, options) for folder in folders]
        measured = statistics.median(seconds for seconds, _ in runs)
        shares = [share for _, share in runs if share is not None]
        together = [*common, *layout_options, "--batch-size", str(clips), "--ranks", str(ranks)]
        together += ["--ranks-per-node", str(ranks), "--peak-tflops", str(tflops)]
        together += ["--node-bandwidth", str(machine["bandwidth"] / 1e9)]
        together += ["--node-latency", str(machine["latency"] * 1e6)]
        predicted = plan(args, together)
        time_of = predicted["time"]
        moved = sum(time_of[part] for part in ("gradients", "parameters", "exchanges", "scalars"))
        rows.append({
            "case": name, "ranks": ranks, "layout": layout, "gflops": tflops * 1e3,
            "predicted": predicted["seconds"], "measured": measured,
            "predicted_share": moved / predicted["seconds"],
            "measured_share": statistics.mean(shares) if shares else None,
        })
        print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


def print_tables(numbers):
    print("| ranks | bandwidth | latency | memory bandwidth of a rank |")
    print("|---|---|---|---|")
    for one in numbers["machine"]:
        link = ["-", "-"]
        if one["ranks"] > 1:
            link = [f"{one['bandwidth'] / 1e9:.2f} GB/s", f"{one['latency'] * 1e6:.1f} us"]
        print(f"| {one['ranks']} | {link[0]} | {link[1]} | {one['memory'] / 1e9:.1f} GB/s |")
    print()
    print("| model | ranks | layout | rate of a rank | predicted | measured | ratio | collectives |")
    print("|---|---|---|---|---|---|---|---|")
    for row in numbers["rows"]:
        share = f"{100 * row['predicted_share']:.0f} %"
        if row["measured_share"] is not None:
            share += f", measured {100 * row['measured_share']:.0f} %"
        ratio = row["predicted"] / row["measured"]
        print(
            f"| {row['case']} | {row['ranks']} | {row['layout']} | {row['gflops']:.0f} GFLOP/s | "
            f"{row['predicted']:.3f} s | {row['measured']:.3f} s | {ratio:.2f} | {share} |"
        )


if __name__ == "__main__":
    main()
