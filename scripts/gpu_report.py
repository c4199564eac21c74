"""Summarizes the results of scripts/gpu-check.sh in gpu.json and a table.

python3 scripts/gpu_report.py OUT DEVICE [docs/performance.md]
"""

import json
import os
import re
import sys

# Dense peaks in TFLOP/s, as NVIDIA's data sheets state them: bf16 on tensor cores, f32 without.
PEAKS = {
    "H200": {"bf16": 989.5, "f32": 66.9},
    "H100": {"bf16": 989.5, "f32": 66.9},
    "H100 PCIe": {"bf16": 756.0, "f32": 51.0},
    "A100": {"bf16": 312.0, "f32": 19.5},
    "L40S": {"bf16": 362.0, "f32": 91.6},
    "L4": {"bf16": 121.0, "f32": 30.3},
    "RTX 4090": {"bf16": 165.2, "f32": 82.6},
}
BEGIN, END = "<!-- gpu-check: begin -->", "<!-- gpu-check: end -->"
UNITS = {"ns": 1e-9, "µs": 1e-6, "us": 1e-6, "ms": 1e-3, "s": 1.0}


def lines(path):
    """Returns the rows of a tab-separated file; none if the file is missing."""
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8", errors="replace") as file:
        return [line.rstrip("\n").split("\t") for line in file]


def load(path):
    """Returns the JSON of a file, or of its last line; None if there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        try:
            return json.loads(text)
        except ValueError:
            return json.loads(text.strip().splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return None


def peaks_of(gpu):
    """Returns the published peaks of a GPU: those of the longest name in PEAKS that its name contains."""
    words = re.findall(r"[a-z0-9]+", gpu.lower())
    def fits(name):
        return all(word in words for word in name.lower().split())
    names = [name for name in PEAKS if fits(name)]
    return PEAKS[max(names, key=len)] if names else {}


def peak_memory(samples, began, ended):
    """Returns the peak of memory in use between two times, in MiB."""
    used = [mib for at, mib in samples if began <= at <= ended]
    return max(used, default=None)


def verify_summary(report):
    """Returns counts of cases and, by kind, the largest error as a fraction of its tolerance."""
    if report is None:
        return None
    kinds = {}
    for case in report["cases"]:
        kind = case.get("kind", "not run")
        row = kinds.setdefault(kind, {"cases": 0, "passed": 0, "worst": 0.0, "worst_tensor": None})
        row["cases"] += 1
        row["passed"] += bool(case["passed"])
        for check in case.get("checks", []):
            error, bound = check["max_abs_error"], check["bound"]
            if error is None:
                share = float("inf")
            elif bound:
                share = error / bound
            else:
                share = 0.0 if error == 0 else float("inf")
            if share > row["worst"]:
                row["worst"], row["worst_tensor"] = share, check["tensor"]
        row["worst"] = row["worst"] if row["worst"] != float("inf") else None
    failed = [
        {"case": case["case"], "step": case.get("step"), "error": case.get("error")}
        for case in report["cases"]
        if not case["passed"]
    ]
    return {"passed": report["passed"], "failed": report["failed"], "kinds": kinds, "failures": failed}


def kernels(path):
    """Returns kernels by total time, the longest first, from lines like `| 12.3µs     | name`."""
    total = {}
    for row in lines(path):
        match = re.search(r"\|\s*([0-9.]+)(ns|µs|us|ms|s)\s*\|\s*(\S.*)$", "\t".join(row))
        if match:
            # The kernel's name is followed by its arguments.
            name = re.split(r"[<({ ]", match[3].strip())[0]
            seconds, count = total.get(name, (0.0, 0))
            total[name] = (seconds + float(match[1]) * UNITS[match[2]], count + 1)
    whole = sum(seconds for seconds, _ in total.values())
    rows = sorted(total.items(), key=lambda item: -item[1][0])
    return [
        {"kernel": name, "seconds": seconds, "launches": count, "share": seconds / whole}
        for name, (seconds, count) in rows
        if whole
    ]


def stages(benches):
    """Returns the stages from prompt to frames by time, the longest first."""
    report = next((bench for bench in benches if bench.get("stages")), None)
    whole = sum(report["stages"].values()) if report else 0.0
    if not whole:
        return []
    rows = sorted(report["stages"].items(), key=lambda item: -item[1])
    return [{"stage": name, "seconds": seconds, "share": seconds / whole} for name, seconds in rows]


def size_of(bench):
    """Returns the size of the timed model and input, as text."""
    if bench["what"] == "t5":
        return f"{bench['layers']} blocks, {bench['tokens']} tokens"
    clip = "{}x{}x{}".format(bench["num_frames"], *bench["image_size"])
    return f"{bench['preset']}, {clip}"


def cell(value, form, scale=1.0):
    return "-" if value is None else form.format(value * scale)


def main():
    out, device = sys.argv[1:3]
    docs = sys.argv[3] if len(sys.argv) > 3 else None
    at = lambda name: os.path.join(out, name)  # noqa: E731
    gpu = lines(at("gpu.csv"))
    name, driver, memory = (gpu[0][0].split(", ") + [None, None])[:3] if gpu else (None, None, None)
    peaks = peaks_of(name or "")
    samples = [(float(row[0]), int(row[1])) for row in lines(at("memory.tsv")) if len(row) == 2 and row[1].isdigit()]

    steps, benches = [], []
    for step, rc, began, ended in lines(at("steps.tsv")):
        used = peak_memory(samples, float(began), float(ended))
        seconds = float(ended) - float(began)
        steps.append({"step": step, "exit_code": rc, "seconds": round(seconds, 2), "peak_device_mib": used})
        report = load(at(step + ".json")) if rc == "0" else None
        if report and "gflops" in report and not step.startswith("kernels"):
            peak = peaks.get(report["dtype"])
            report["share_of_peak"] = report["gflops"] / 1e3 / peak if peak else None
            report["peak_tflops"] = peak
            report["peak_device_mib"] = used
            benches.append({"step": step, **report})
    longest = kernels(at("kernels.log"))
    result = {
        "device": device,
        "gpu": name,
        "driver": driver,
        "memory_mib": int(memory) if memory else None,
        "published_peak_tflops": peaks or None,
        "verify": verify_summary(load(at("verify.json"))),
        "bench": benches,
        "largest_costs": longest[:3],
        "stages": stages(benches),
        "kernels": longest[:20],
        "steps": steps,
    }
    with open(at("gpu.json"), "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
        file.write("\n")

    verify = result["verify"]
    table = [
        f"Measured by `scripts/gpu-check.sh` on {name or device}"
        + (f" (driver {driver}, {int(memory) / 1024:.0f} GiB)" if memory else "")
        + "; medians, random weights. Peak memory as `nvidia-smi` reports it, including memory that the allocator caches.",
        "",
        "| command | type | seconds | TFLOP/s | share of the measured matmul ceiling | share of the published peak | peak device memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for bench in benches:
        table.append(
            "| `bench {}`, {} | {} | {} | {} | {} | {} | {} |".format(
                bench["what"],
                size_of(bench),
                bench["dtype"],
                cell(bench["seconds"], "{:.4g}"),
                cell(bench["gflops"], "{:.3g}", 1e-3),
                cell(bench["share_of_ceiling"], "{:.0f} %", 100),
                cell(bench["share_of_peak"], "{:.0f} %", 100),
                cell(bench["peak_device_mib"], "{:.1f} GiB", 1 / 1024),
            )
        )
    demo = next((step for step in steps if step["step"] == "sample-demo" and step["exit_code"] == "0"), None)
    if demo:
        table.append(f"| `sample --model demo`, start to end | f32 | {demo['seconds']:.1f} | - | - | - | {cell(demo['peak_device_mib'], '{:.1f} GiB', 1 / 1024)} |")
    table.append("")
    if verify:
        table.append(f"Golden cases (`opensora verify`): {verify['passed']} passed, {verify['failed']} failed.")
    else:
        table.append("Golden cases (`opensora verify`): not run.")
    if longest:
        costs = "; ".join(f"`{row['kernel']}` {100 * row['share']:.0f} % ({row['launches']} launches)" for row in longest[:3])
        table.append(f"Largest costs of a forward pass in bf16, by kernel: {costs}.")
    parts = ", ".join(f"{row['stage']} {row['seconds']:.3g} s" for row in result["stages"])
    if parts:
        table.append(f"Stages of `bench sample`: {parts}.")
    missing = [step["step"] for step in steps if step["exit_code"] != "0"]
    if missing:
        table.append(f"Not measured: {', '.join(missing)}.")
    text = "\n".join(table) + "\n"
    with open(at("gpu.md"), "w", encoding="utf-8") as file:
        file.write(text)
    print("\n" + text)

    if docs:
        with open(docs, encoding="utf-8") as file:
            page = file.read()
        before, mark, rest = page.partition(BEGIN)
        _, other, after = rest.partition(END)
        if not (mark and other):
            sys.exit(f"{docs} has no lines {BEGIN} and {END}")
        with open(docs, "w", encoding="utf-8") as file:
            file.write(f"{before}{BEGIN}\n{text}{END}{after}")


if __name__ == "__main__":
    main()
