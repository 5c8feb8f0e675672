"""Queueing theory, and the plain recursions that its models are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minivllm.engine import Engine
from minivllm.request import Request
from minivllm.sampling_params import SamplingParams


def simulate(
    engine: Engine, arrivals: Sequence[float] | np.ndarray, lengths: Sequence[int] | np.ndarray
) -> list[Request]:
    """Send prompts of one token when they are due; returns them in order of arrival."""
    clock, done = engine.clock, []
    due = [(float(at), int(n)) for at, n in zip(arrivals, lengths, strict=True)]
    params = {n: SamplingParams(max_tokens=n, temperature=0.0, seed=0, ignore_eos=True) for _, n in due}
    place = 0
    while place < len(due) or engine.has_unfinished:
        while place < len(due) and due[place][0] <= clock.now_s():
            at, n = due[place]
            engine.add_request([1], params[n], arrival_s=at)
            place += 1
        if not engine.has_unfinished:
            clock.sleep_until(due[place][0])
            continue
        engine.step()
        done += engine.take_finished()
    return sorted(done, key=lambda request: request.request_id)


def lindley_waits(arrivals: np.ndarray, services: np.ndarray) -> np.ndarray:
    """Waits before a single server, first come, first served (Lindley, 1952)."""
    waits = np.zeros(len(arrivals))
    for i in range(1, len(arrivals)):
        waits[i] = max(0.0, waits[i - 1] + services[i - 1] - (arrivals[i] - arrivals[i - 1]))
    return waits


def mg1_mean_wait(rate: float, mean_s: float, second_moment_s2: float) -> float:
    """Pollaczek-Khinchine."""
    return rate * second_moment_s2 / (2 * (1 - rate * mean_s))


def processor_sharing_sojourns(arrivals: np.ndarray, lengths: np.ndarray, token_s: float) -> np.ndarray:
    """Rounds in which everyone present gets one token, and which take `token_s` each of them."""
    now_s, place = 0.0, 0
    left: dict[int, int] = {}
    sojourns = np.zeros(len(arrivals))
    while place < len(arrivals) or left:
        if not left:
            now_s = max(now_s, float(arrivals[place]))
        while place < len(arrivals) and arrivals[place] <= now_s:
            left[place] = int(lengths[place])
            place += 1
        now_s += token_s * len(left)
        for i in list(left):
            left[i] -= 1
            if not left[i]:
                sojourns[i] = now_s - arrivals[i]
                del left[i]
    return sojourns


def mean_and_error(values: np.ndarray, num_batches: int = 20) -> tuple[float, float]:
    """Mean and its standard error by batch means, as neighbours in a queue wait alike."""
    means = np.array([part.mean() for part in np.array_split(values, num_batches)])
    return float(values.mean()), float(means.std(ddof=1) / np.sqrt(num_batches))
