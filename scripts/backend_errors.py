#!/usr/bin/env python3
"""Makes the table of errors by backend and kind in docs/backends.md.

    opensora verify tests/fixtures/goldens --device flex --json > flex.json    # and so on
    scripts/backend_errors.py flex.json ndarray.json tch.json wgpu.json

A cell has the largest error of a kind's outputs as a fraction of the output's tolerance (above 1 fails), and in brackets the
error itself. Outputs that are compared exactly and bytes of images are left out; `-` means that a kind has no other outputs.
"""

import json
import sys
from pathlib import Path


def worst(cases, kind):
    """Returns (fraction of the tolerance, error) of the output closest to its tolerance, or None."""
    shares = [
        (check["max_abs_error"] / check["bound"], check["max_abs_error"])
        for case in cases
        if case["kind"] == kind
        for check in case["checks"]
        if check["bound"] > 0 and "bytes differ" not in (check["note"] or "")
    ]
    return max(shares, default=None)


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    runs = {Path(name).stem: json.loads(Path(name).read_text())["cases"] for name in sys.argv[1:]}
    for name, cases in runs.items():
        failed = [case["case"] for case in cases if not case["passed"]]
        if failed:
            sys.exit(f"{name}: failed: {', '.join(failed)}")
    kinds = sorted({case["kind"] for cases in runs.values() for case in cases})
    print("| kind | " + " | ".join(runs) + " |")
    print("|---" * (len(runs) + 1) + "|")
    for kind in kinds:
        found = [worst(cases, kind) for cases in runs.values()]
        cells = ["-" if one is None else f"{one[0]:.2f} ({one[1]:.1e})" for one in found]
        print(f"| {kind} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
