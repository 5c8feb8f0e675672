#!/usr/bin/env python
"""Whether the statistics keep their promises, on synthetic sweeps of known truth. Some minutes on one core.

    .venv/bin/python scripts/statistics_check.py
    .venv/bin/python scripts/statistics_check.py --quick

Three studies (`tests/support/noisy_sweeps.py` makes the sweeps: skewed noise, drift, workloads of unequal hardness):

    A/A         equal points against each other: how often a difference is claimed. Promise: at most 5 %.
    planted     a 5 % slow-down, run as often as the planner advised after a pilot: how often found. Promise: 90 %.
    coverage    how many of the 95 % intervals contain the truth. Promise: 93 to 97 %.

Wrong methods stand beside ours, so that one sees what the studies can tell. Exits with 1 where a promise is broken.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(_ROOT), str(_ROOT / "tests" / "support")]

import numpy as np  # noqa: E402
from noisy_sweeps import (  # noqa: E402
    bootstrap,
    coverage,
    false_verdicts,
    normal,
    ours,
    planted,
    uncorrected,
    unpaired,
)


def _percent(share: float) -> str:
    return f"{100 * share:5.1f} %"


def check_false_verdicts(num_sweeps: int, seed: int) -> bool:
    print(f"\n(a) A/A: {num_sweeps} sweeps of 2 equal points, then {num_sweeps // 5} of 6; 3, 5, 7 and 10 repeats")
    print("    comparisons  a sweep  our verdicts: of comparisons  of sweeps    p < 0.05: of comparisons  of sweeps")
    kept = True
    for sweeps, comparisons in ((num_sweeps, 1), (num_sweeps // 5, 5)):
        share, of_sweeps = false_verdicts(sweeps, seed, comparisons)
        naive, naive_sweeps = false_verdicts(sweeps, seed, comparisons, uncorrected)
        print(
            f"    {sweeps * comparisons:11,}  {comparisons:7}  {_percent(share):>28}  {_percent(of_sweeps):>9}  "
            f"{_percent(naive):>25}  {_percent(naive_sweeps):>9}"
        )
        kept &= share <= 0.05 and of_sweeps <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / sweeps)
    return kept


def check_planted(num: int, seed: int) -> bool:
    print(f"\n(b) planted 5 % slow-down, {num} pilots of each size, each followed by a sweep of the advised size")
    print("    pilot repeats  found     advised (median)    with half the advised: found")
    kept = True
    for pilot in (3, 5, 10):
        share, advised = planted(num, seed, pilot)
        half, _ = planted(num, seed, pilot, advised=lambda repeats: int(repeats) // 2)
        print(f"    {pilot:13}  {_percent(share)}  {advised:16.0f}    {_percent(half):>28}")
        kept &= share >= 0.9
    return kept


def check_coverage(num_sweeps: int, seed: int) -> bool:
    print(f"\n(c) coverage of 95 % intervals of the ratio, {num_sweeps:,} sweeps of 2 to 5 points")
    methods = {"paired t": ours, "BCa bootstrap": bootstrap, "unpaired t": unpaired, "normal": normal}
    found = coverage(num_sweeps, seed, methods)
    print("    repeats  intervals  " + "  ".join(f"{name:>13}" for name in methods))
    for repeats, row in found.iterrows():
        cells = "  ".join(f"{_percent(row[name]):>13}" for name in methods)
        print(f"    {repeats!s:>7}  {int(row['num']):9,}  {cells}")
    return bool(0.93 <= found.loc["all", "paired t"] <= 0.97)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    part = 10 if chosen.quick else 1
    start = time.perf_counter()
    kept = {
        "at most 5 % false verdicts": check_false_verdicts(2000 // part, chosen.seed),
        "at least 90 % found": check_planted(400 // part, chosen.seed),
        "93 to 97 % covered": check_coverage(1000 // part, chosen.seed),
    }
    print()
    for promise, held in kept.items():
        print(f"{promise:28} {'kept' if held else 'BROKEN'}")
    print(f"{time.perf_counter() - start:.0f} s")
    return int(not all(kept.values()))


if __name__ == "__main__":
    sys.exit(main())
