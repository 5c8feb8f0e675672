#!/usr/bin/env python
"""Hold the simulator against queueing theory: mean waits and sojourns of the real engine on virtual time.

    python scripts/theory_check.py                      # 200,000 requests a case
    python scripts/theory_check.py --requests 20000 --seed 3

Three cases: M/D/1 (one request at a time, constant steps), M/M/1 (one at a time, geometric numbers of steps) and
processor sharing (steps as long as there are requests in them). Each line has the mean, theory's, their ratio, and the
standard error of the mean by batch means, as a fraction. Exit code 1 if a mean is off by more than 2 % and by more than
three standard errors.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

_ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(_ROOT), str(_ROOT / "kernels"), str(_ROOT / "tests" / "support")]

from simulating import simulated_engine  # noqa: E402
from theory import mean_and_error, mg1_mean_wait, simulate  # noqa: E402

_ALLOWED = 0.02


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--load", type=float, default=0.6)
    parser.add_argument("--tokens", type=int, default=8, help="mean output of M/M/1; processor sharing has 6 times it")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    generator = np.random.default_rng(chosen.seed)
    count, load, step_s = chosen.requests, chosen.load, 0.01

    def arrivals(service_s: float) -> np.ndarray:
        return np.cumsum(generator.exponential(service_s / load, size=count))

    one = {"max_num_seqs": 1, "step_s": step_s, "prefix_caching": False}
    shared = {"max_num_seqs": 4096, "max_num_batched_tokens": 4096, "step_s": 0.0, "prefix_caching": False}
    service_s = chosen.tokens * step_s
    second_s2 = (2 - 1 / chosen.tokens) * service_s**2
    token_s, num_tokens = step_s / 10, 6 * chosen.tokens
    cases = {
        "M/D/1 wait": (one, step_s, np.ones(count, dtype=int), load * step_s / (2 * (1 - load))),
        "M/M/1 wait": (
            one,
            service_s,
            generator.geometric(1 / chosen.tokens, size=count),
            mg1_mean_wait(load / service_s, service_s, second_s2),
        ),
        "processor sharing sojourn": (
            {**shared, "request_s": token_s},
            num_tokens * token_s,
            generator.geometric(1 / num_tokens, size=count),
            num_tokens * token_s / (1 - load),
        ),
    }
    failed = False
    for name, (options, mean_service_s, lengths, theory_s) in cases.items():
        engine = simulated_engine(**options)
        started_s = time.perf_counter()
        done = simulate(engine, arrivals(mean_service_s), lengths)
        took_s = time.perf_counter() - started_s
        ends = [r.finish_s if "sojourn" in name else r.first_scheduled_s for r in done]
        mean_s, error_s = mean_and_error(np.array(ends) - np.array([r.arrival_s for r in done]))
        off = mean_s / theory_s - 1
        failed |= abs(off) > _ALLOWED and abs(mean_s - theory_s) > 3 * error_s
        print(
            f"{name:26s} {mean_s * 1e3:9.4f} ms, theory {theory_s * 1e3:9.4f} ms: {off:+.2%}, standard error "
            f"{error_s / mean_s:.2%} ({count:,} requests, {int(lengths.sum()):,} tokens, {took_s:.0f} s)"
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
