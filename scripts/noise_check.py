#!/usr/bin/env python
"""Whether verdicts on real runs of the reference model can be believed: about ten minutes, on a machine that does
nothing else.

    .venv/bin/python scripts/noise_check.py FOLDER
    .venv/bin/python scripts/noise_check.py FOLDER --sweeps 4 --pairs 30

Two studies; their sweeps stay in FOLDER, and what is complete there is not run again:

    A/A         sweeps of one config under two labels (`experiment=aa`): how many are called faster or slower.
    planted     one config against itself made 5 % slower (`tests/support/planted.py` waits before each step). Pilots of
                5 pairs are drawn from all pairs that ran, the planner says how many repeats a 5 % effect takes, as many
                of the other pairs are drawn, and compared: how often is it found? Where a pilot asks for more pairs
                than ran, that is counted apart; a second line draws with replacement, pilots too, from the pairs that
                ran, moved so that their mean is the planted effect exactly: what the planner is good for under noise
                of this shape, for every pilot.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(_ROOT)]

import numpy as np  # noqa: E402

import analysis  # noqa: E402
from analysis.direction import direction_of  # noqa: E402
from analysis.intervals import paired  # noqa: E402
from analysis.planning import repeats_needed  # noqa: E402
from analysis.values import repeats_of  # noqa: E402
from analysis.verdicts import EQUAL_WITHIN, verdict  # noqa: E402

_METRIC = "output_throughput_tps"
_PILOT = 5


def sweep(folder: Path, name: str, *overrides: str) -> analysis.Sweep:
    """Run what is not complete, and load it."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(_ROOT), str(_ROOT / "kernels"), *_SUPPORT])}
    command = [sys.executable, "-m", "experiments", "sweep", f"sweep.folder={folder}", f"sweep.name={name}"]
    subprocess.run(
        [*command, "tracking=none", *overrides], env=environment, check=True, stdout=subprocess.DEVNULL, cwd=_ROOT
    )
    return analysis.load(folder / name)


_SUPPORT = [str(_ROOT / "tests" / "support")]


def check_aa(folder: Path, num_sweeps: int, repeats: int) -> None:
    verdicts: list[str] = []
    ratios: list[float] = []
    for seed in range(num_sweeps):
        found = analysis.compare(sweep(folder, f"aa-{seed:02d}", "experiment=aa", f"repeats={repeats}", f"seed={seed}"))
        verdicts += found["verdict"].tolist()
        ratios += found["ratio"].tolist()
    wrong = sum(word in (direction_of(_METRIC).up, direction_of(_METRIC).down) for word in verdicts)
    print(f"A/A: {len(verdicts)} comparisons of {repeats} pairs: {wrong} called faster or slower")
    for word in sorted(set(verdicts)):
        print(f"    {verdicts.count(word):3d}  {word}")
    print(f"    ratios from {min(ratios):.3f} to {max(ratios):.3f}")


def check_planted(folder: Path, num_pairs: int, num_cases: int, num_requests: int) -> None:
    loaded = sweep(
        folder,
        f"planted-{num_requests}",
        "experiment=aa",
        "label=null",
        "attention._target_=planted.SlowerAttention",
        "+attention.slow_down=0,0.05",
        f"workload.num_requests={num_requests}",
        f"repeats={num_pairs}",
    )
    values = repeats_of(loaded, _METRIC).dropna()
    knob = loaded.runs.drop_duplicates("point_id").set_index("point_id")["cfg.attention.slow_down"]
    slow = {key[1]: bool(knob[key[1]] > 0) for key in values.columns}
    (fast_key,), (slow_key,) = ([k for k in values.columns if slow[k[1]] is wanted] for wanted in (False, True))
    pairs = values[[slow_key, fast_key]].to_numpy()
    whole = paired(pairs[:, 0], pairs[:, 1])
    print(
        f"planted: ratio {whole.ratio:.4f} [{whole.ratio_low:.4f}, {whole.ratio_high:.4f}] over {len(pairs)} pairs, "
        f"spread of a pair {whole.spread:.2%}"
    )
    draws = np.random.default_rng(0)
    found, advised, short = 0, [], 0
    for _ in range(num_cases):
        order = draws.permutation(len(pairs))
        pilot = pairs[order[:_PILOT]]
        needed = repeats_needed(paired(pilot[:, 0], pilot[:, 1]).spread, _PILOT, 0.05, margin=EQUAL_WITHIN)
        advised.append(needed)
        if needed > len(pairs) - _PILOT:
            # It would take more pairs than ran: counted apart, not as found.
            short += 1
            continue
        chosen = pairs[order[_PILOT : _PILOT + int(needed)]]
        one = paired(chosen[:, 0], chosen[:, 1])
        word = verdict(one, one.p, direction_of(_METRIC), equal_within=EQUAL_WITHIN)
        found += word == direction_of(_METRIC).down
    again, moved = 0, pairs.copy()
    moved[:, 0] *= 1 / 1.05 / whole.ratio
    for _ in range(num_cases):
        pilot = moved[draws.integers(len(moved), size=_PILOT)]
        needed = repeats_needed(paired(pilot[:, 0], pilot[:, 1]).spread, _PILOT, 0.05, margin=EQUAL_WITHIN)
        chosen = moved[draws.integers(len(moved), size=int(needed))]
        one = paired(chosen[:, 0], chosen[:, 1])
        word = verdict(one, one.p, direction_of(_METRIC), equal_within=EQUAL_WITHIN)
        again += word == direction_of(_METRIC).down
    tried = num_cases - short
    print(
        f"    {num_cases} pilots of {_PILOT} pairs: advised {np.median(advised):.0f} repeats (median); found in "
        f"{found} of {tried} ({found / max(1, tried):.1%}); {short} advised more pairs than ran"
    )
    print(
        f"    drawn with replacement, the effect exactly 5 %: found in {again} of {num_cases} ({again / num_cases:.1%})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sweeps", type=int, default=20, help="A/A sweeps")
    parser.add_argument("--repeats", type=int, default=8, help="pairs of each A/A sweep")
    parser.add_argument("--pairs", type=int, default=100, help="pairs of the planted study")
    parser.add_argument("--cases", type=int, default=400, help="pilots drawn from them")
    parser.add_argument("--requests", type=int, default=24, help="of a run of the planted study: how long it takes")
    args = parser.parse_args()
    if args.sweeps:
        check_aa(args.folder, args.sweeps, args.repeats)
    check_planted(args.folder, args.pairs, args.cases, args.requests)


if __name__ == "__main__":
    main()
