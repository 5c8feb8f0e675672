"""Queues with known answers: a scheduler, an engine and a clock that are right wait as theory says.

What has to be exact is compared with a recursion of its own over the same arrivals; means are compared with theory
within three of their own standard errors: a test has few requests. `scripts/theory_check.py` has more.
"""

from __future__ import annotations

import numpy as np
import pytest
from simulating import simulated_engine
from theory import (
    lindley_waits,
    mean_and_error,
    mg1_mean_wait,
    processor_sharing_sojourns,
    simulate,
)

_STEP_S = 0.01


def test_a_server_for_one_waits_as_lindley_and_pollaczek_say() -> None:
    """M/D/1: prompts of one token and one token of output, one at a time, are one constant step each."""
    generator = np.random.default_rng(7)
    load = 0.7
    arrivals = np.cumsum(generator.exponential(_STEP_S / load, size=12_000))
    engine = simulated_engine(max_num_seqs=1, step_s=_STEP_S, prefix_caching=False)
    done = simulate(engine, arrivals, np.ones(len(arrivals), dtype=int))
    waits = np.array([r.first_scheduled_s - r.arrival_s for r in done])
    np.testing.assert_allclose(waits, lindley_waits(arrivals, np.full(len(arrivals), _STEP_S)), atol=1e-6)
    mean, error = mean_and_error(waits)
    expected = load * _STEP_S / (2 * (1 - load))
    assert expected == pytest.approx(mg1_mean_wait(load / _STEP_S, _STEP_S, _STEP_S**2))
    assert abs(mean - expected) < 3 * error < 0.3 * expected


def test_lengths_without_memory_wait_as_in_mm1() -> None:
    """M/M/1, its exponential service made of whole steps: geometric numbers of them."""
    generator = np.random.default_rng(8)
    load, mean_tokens = 0.6, 8
    lengths = generator.geometric(1 / mean_tokens, size=3_000)
    arrivals = np.cumsum(generator.exponential(_STEP_S * mean_tokens / load, size=len(lengths)))
    engine = simulated_engine(max_num_seqs=1, step_s=_STEP_S, prefix_caching=False)
    done = simulate(engine, arrivals, lengths)
    waits = np.array([r.first_scheduled_s - r.arrival_s for r in done])
    np.testing.assert_allclose(waits, lindley_waits(arrivals, lengths * _STEP_S), atol=1e-6)
    mean, error = mean_and_error(waits)
    rate = load / (_STEP_S * mean_tokens)
    second_moment = (2 - 1 / mean_tokens) * mean_tokens**2 * _STEP_S**2
    assert abs(mean - mg1_mean_wait(rate, _STEP_S * mean_tokens, second_moment)) < 3 * error


def test_a_batch_that_slows_down_with_its_size_shares_the_processor() -> None:
    """Steps as long as there are requests in them: egalitarian processor sharing, 1 / (mu - lambda) whatever the
    distribution of lengths, but for the step that a newcomer waits for."""
    generator = np.random.default_rng(9)
    load, mean_tokens, token_s = 0.5, 25, 0.001
    lengths = generator.geometric(1 / mean_tokens, size=1_500)
    arrivals = np.cumsum(generator.exponential(token_s * mean_tokens / load, size=len(lengths)))
    engine = simulated_engine(
        max_num_seqs=1024, max_num_batched_tokens=1024, step_s=0.0, request_s=token_s, prefix_caching=False
    )
    done = simulate(engine, arrivals, lengths)
    sojourns = np.array([r.finish_s - r.arrival_s for r in done])
    np.testing.assert_allclose(sojourns, processor_sharing_sojourns(arrivals, lengths, token_s), atol=1e-6)
    mean, error = mean_and_error(sojourns)
    expected = token_s * mean_tokens / (1 - load)
    assert abs(mean - expected) < 3 * error + 2 * token_s
