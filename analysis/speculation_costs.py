"""What speculation should gain, from what steps cost and how many drafts are accepted; and where it breaks even.

Only steps that do nothing but decode are looked at, for their cost is what speculation changes. Of runs without drafts
`p(n)` is the mean duration of those that decode n requests, between known n by interpolation, beyond them that of the
nearest. Of runs with drafts, step i decodes n_i requests in d_i seconds, v_i of them verify drafts, and a_i drafts are
accepted: each request gets 1 + a_i / n_i tokens on average, which would take as many plain steps of the same occupancy.

    gain of a step      G = sum (1 + a_i / n_i) p(n_i) / sum d_i

Drafting also changes how many requests share a step: some get further than others, so they end at different times, and
the last ones run alone. No step's cost shows that, but the time of a token without drafts does: t at the occupancies
that there were, u at those with drafts.

    sharing             H = t / u,  t = sum d_j / sum n_j over plain steps j,
                                    u = sum (1 + a_i / n_i) p(n_i) / sum (n_i + a_i)
    decoding            S = G H
    the whole           1 / (f + (1 - f) / S)

where f is the share of a run without drafts that is no such step (prefills, the client), which costs the same either
way. With x accepted drafts a verification in place of the measured ones S is 1, whatever f, at

    break-even          x = (sum d_i / H - sum p(n_i)) / sum (v_i / n_i) p(n_i),  an acceptance length of 1 + x.

Of the runs that it is made of this is bookkeeping. So `analysis.speculations` predicts each repeat from the *other*
repeats, whose requests are others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from analysis.columns import OK, RUN_KEY
from analysis.load import Sweep
from analysis.summary import numbers

RunKey = tuple[str, str]
_COUNTS = ("num_decode_tokens", "num_accepted_tokens", "num_verifications", "duration_s", "draft_s", "verify_s")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Decoding:
    """The steps of a run that only decoded, each array `[num_steps]` float64.

    Args:
        num_requests: decoded in the step.
        num_accepted: drafts.
        num_verifications: requests whose drafts were verified.
        duration_s, draft_s, verify_s: of the step, and of its parts; 0 where nothing was drafted.
        run_s: duration of the whole run.
    """

    num_requests: np.ndarray
    num_accepted: np.ndarray
    num_verifications: np.ndarray
    duration_s: np.ndarray
    draft_s: np.ndarray
    verify_s: np.ndarray
    run_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """What some runs with drafts, and as many without, say together; times are means a step that only decodes.

    Args:
        plain_step_s: without drafts, at the occupancies of the steps with drafts.
        step_s, draft_s, verify_s: with drafts, and the two parts of it that are told apart.
        step_gain: G of this module.
        sharing_factor: H.
        rest_fraction: f.
        speedup: of the whole.
        break_even_length: 1 + x; NaN where nothing was verified.
    """

    plain_step_s: float
    step_s: float
    draft_s: float
    verify_s: float
    step_gain: float
    sharing_factor: float
    rest_fraction: float
    speedup: float
    break_even_length: float


def decoding_of(sweep: Sweep) -> dict[RunKey, Decoding]:
    """Of every finished run that has steps, those that only decoded."""
    runs = sweep.runs[sweep.runs["status"] == OK].drop_duplicates(RUN_KEY)
    durations = dict(zip(runs[RUN_KEY].itertuples(index=False, name=None), numbers(runs["duration_s"]), strict=True))
    steps = sweep.steps
    # Of the warm-up there are none, but by older versions.
    only = numbers(steps["num_prefill_tokens"]).eq(0) & ~numbers(steps["start_s"]).lt(0)
    values = {name: numbers(steps[name]) for name in _COUNTS}
    only &= values["num_decode_tokens"].gt(0) & values["duration_s"].notna()
    table = steps.loc[only, RUN_KEY].assign(**{name: column[only].fillna(0.0) for name, column in values.items()})
    made = {}
    for key, group in table.groupby(RUN_KEY, sort=False):
        run_s = durations.get(key, math.nan)
        if math.isfinite(run_s) and run_s > 0:
            columns = {name: group[name].to_numpy(dtype=float) for name in _COUNTS}
            made[key] = Decoding(
                num_requests=columns["num_decode_tokens"],
                num_accepted=columns["num_accepted_tokens"],
                num_verifications=columns["num_verifications"],
                duration_s=columns["duration_s"],
                draft_s=columns["draft_s"],
                verify_s=columns["verify_s"],
                run_s=run_s,
            )
    return made


def costs_of(drafting: Sequence[Decoding], plain: Sequence[Decoding]) -> Costs | None:
    """By the formulae of this module; None where one of the two never only decoded.

    Args:
        drafting: runs with drafts.
        plain: runs of the same setting without.
    """
    if not sum(len(run.duration_s) for run in drafting) or not sum(len(run.duration_s) for run in plain):
        return None
    num, accepted, verified, duration_s, draft_s, verify_s = (
        np.concatenate([getattr(run, name) for run in drafting])
        for name in ("num_requests", "num_accepted", "num_verifications", "duration_s", "draft_s", "verify_s")
    )
    plain_s = _plain(plain, num)
    replaced_s = float(((1 + accepted / num) * plain_s).sum())
    gain = replaced_s / float(duration_s.sum())
    decoding_s, num_tokens = (
        sum(float(getattr(run, name).sum()) for run in plain) for name in ("duration_s", "num_requests")
    )
    sharing = decoding_s / num_tokens / (replaced_s / float((num + accepted).sum()))
    rest = max(0.0, 1 - decoding_s / sum(run.run_s for run in plain))
    needed_s = float(duration_s.sum()) / sharing - float(plain_s.sum())
    weight = float((verified / num * plain_s).sum())
    return Costs(
        plain_step_s=float(plain_s.mean()),
        step_s=float(duration_s.mean()),
        draft_s=float(draft_s.mean()),
        verify_s=float(verify_s.mean()),
        step_gain=gain,
        sharing_factor=sharing,
        rest_fraction=rest,
        speedup=1 / (rest + (1 - rest) / (gain * sharing)),
        break_even_length=1 + max(0.0, needed_s / weight) if weight else math.nan,
    )


def _plain(runs: Sequence[Decoding], num_requests: np.ndarray) -> np.ndarray:
    """Mean duration of a step without drafts at each occupancy, `[num_steps]` seconds."""
    num, duration_s = (np.concatenate([getattr(run, name) for run in runs]) for name in ("num_requests", "duration_s"))
    known, place = np.unique(num, return_inverse=True)
    means = np.bincount(place, weights=duration_s) / np.bincount(place)
    found: np.ndarray = np.interp(num_requests, known, means)
    return found


def probability_of(length: float, proposed: Sequence[int], num_verifications: int) -> float:
    """The probability of acceptance, the same for all drafts, that comes to an acceptance length.

    Args:
        length: tokens a verification, the target's own included.
        proposed: verifications whose drafts reached each position.
        num_verifications: of all.

    Returns:
        p of `length = 1 + sum_i q_i p^i`, where q_i is the share of verifications with a draft at position i. NaN where
        even p = 1 comes to less, or nothing was verified.
    """
    if not num_verifications or math.isnan(length):
        return math.nan
    shares = np.asarray(proposed, dtype=float) / num_verifications
    places = np.arange(1, len(shares) + 1)
    wanted = length - 1
    if wanted <= 0:
        return 0.0
    if wanted > shares.sum():
        # Rounding, where all drafts were accepted.
        return 1.0 if math.isclose(wanted, shares.sum(), rel_tol=1e-9) else math.nan
    return float(brentq(lambda p: float((shares * p**places).sum()) - wanted, 0.0, 1.0))
