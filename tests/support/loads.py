"""Loads as a command line would make them, and statistics that say how far draws may be from their distribution."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from scipy import stats

from experiments.compose import CONF
from experiments.plan import plan_sweep
from experiments.points import freeze, located
from experiments.workloads.offered import OfferedLoad, offered_load
from experiments.workloads.prompts import RandomTokens
from minivllm.config import Component

NUM_DRAWS = 400_000
# Below, a result is no chance: seeds are fixed, so a test that passes once passes always.
P_VALUE = 0.001
SIGMAS = 4.0


def make_load(*overrides: str, max_model_len: int = 2048, **changes: Any) -> OfferedLoad:
    """The load of one point, with random tokens for prompts.

    Args:
        overrides: of the command line.
        changes: of the frozen settings, such as `seed`: composing takes longer than all that is tested.
    """
    (job,) = plan_sweep(list(overrides)).jobs
    settings = dataclasses.replace(freeze(job.config), **changes)
    return offered_load(settings, lambda prompts: RandomTokens(97), max_model_len=max_model_len)


def make_component(group: str, member: str, **changes: Any) -> Component:
    """A member of a config group, from its YAML."""
    node: Any = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{member}.yaml"))
    # An interpolation of the workload's, which is not here.
    node |= {"rate_rps": 4.0} if "rate_rps" in node else {}
    node |= changes
    if "path" in node:
        node["path"] = located(node["path"])
    return Component(target=node.pop("_target_"), kwargs=node)


def make_part(group: str, member: str, **changes: Any) -> Any:
    """The object of a member."""
    return make_component(group, member, **changes).make(group)


def check_moments(draws: np.ndarray, distribution: Any) -> None:
    """Mean and coefficient of variation are those of a scipy distribution, within their standard errors."""
    mean, variance, skew, kurtosis = (float(m) for m in distribution.stats("mvsk"))
    cv = np.sqrt(variance) / mean
    # First-order errors of ln(mean) and of ln(deviation / mean).
    mean_error = cv / np.sqrt(draws.size)
    cv_error = np.sqrt(((kurtosis + 2) / 4 + cv**2 - skew * cv) / draws.size)
    assert abs(np.log(draws.mean() / mean)) < SIGMAS * mean_error
    assert abs(np.log(draws.std() / draws.mean() / cv)) < SIGMAS * cv_error


def check_tails(draws: np.ndarray, distribution: Any) -> None:
    """As many draws lie far out on either side as the distribution has there, and the farthest is far enough."""
    for tail in (1e-2, 1e-3, 1e-4):
        for found in ((draws > distribution.isf(tail)).sum(), (draws < distribution.ppf(tail)).sum()):
            assert stats.binomtest(int(found), draws.size, tail).pvalue > P_VALUE
    assert draws.max() > distribution.isf(7 / draws.size)


def check_distribution(draws: np.ndarray, distribution: Any) -> None:
    """All that can be asked of independent draws of a continuous distribution."""
    check_moments(draws, distribution)
    check_tails(draws, distribution)
    assert stats.kstest(draws, distribution.cdf).pvalue > P_VALUE
    # The next draw knows nothing of the last one: of ranks, for these have all moments.
    ranks = stats.rankdata(draws)
    assert abs(np.corrcoef(ranks[1:], ranks[:-1])[0, 1]) < SIGMAS / np.sqrt(draws.size)


def check_counts(values: np.ndarray, probabilities: dict[int, float]) -> None:
    """Whole numbers come as often as they should: chi-square over neighbours that are expected 20 times or more."""
    assert set(np.unique(values)) <= set(probabilities)
    order = sorted(probabilities)
    seen = dict(zip(*np.unique(values, return_counts=True), strict=True))
    expected, observed = [0.0], [0]
    for value in order:
        if expected[-1] >= 20:
            expected.append(0.0)
            observed.append(0)
        expected[-1] += probabilities[value] * values.size
        observed[-1] += int(seen.get(value, 0))
    assert sum(expected) > 0.999 * values.size
    if len(expected) > 1:
        assert stats.chisquare(observed, np.array(expected) * values.size / sum(expected)).pvalue > P_VALUE
