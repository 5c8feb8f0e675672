"""Estimates of acceptance, fed with verdicts of known chances."""

from __future__ import annotations

import random

import pytest

from minivllm.speculation.lengths.acceptance import Acceptance
from minivllm.speculation.lengths.base import DraftOutcome


def _make_outcome(request_id: int, num_accepted: int, *, drafts: int = 4, depth: int | None = None, allowed: int = 4):
    return DraftOutcome(
        request_id=request_id,
        num_allowed_tokens=allowed,
        num_draft_tokens=drafts,
        draft_depth=drafts if depth is None else depth,
        num_accepted_tokens=num_accepted,
    )


def _draw(rng: random.Random, chances: list[float]) -> int:
    num_accepted = 0
    while num_accepted < len(chances) and rng.random() < chances[num_accepted]:
        num_accepted += 1
    return num_accepted


def _chances(acceptance: Acceptance, request_id: int) -> list[float]:
    ability = acceptance.of(request_id)[1]
    return [ability * odds / (1 + ability * odds) for odds in acceptance.odds]


def test_acceptance_is_learned_by_depth() -> None:
    acceptance, rng, truth = Acceptance(4), random.Random(0), [0.9, 0.7, 0.4, 0.4]
    for _ in range(300):
        acceptance.observe([_make_outcome(i, _draw(rng, truth)) for i in range(16)])
    assert _chances(acceptance, 0) == pytest.approx(truth, abs=0.08)
    assert acceptance.survival[2] == pytest.approx(0.9 + 0.63, abs=0.08)


def test_good_and_bad_requests_are_told_apart_within_twenty_steps() -> None:
    acceptance, rng = Acceptance(4), random.Random(0)
    truth = {i: [0.95 if i % 4 == 0 else 0.1] * 4 for i in range(16)}
    for i in truth:
        acceptance.of(i)
    for _ in range(20):
        acceptance.observe([_make_outcome(i, _draw(rng, chances)) for i, chances in truth.items()])
    first = {i: _chances(acceptance, i)[0] for i in truth}
    assert min(first[i] for i in truth if i % 4 == 0) > 0.6
    assert max(first[i] for i in truth if i % 4) < 0.45


def test_what_was_never_tried_is_taken_from_the_depth_before() -> None:
    acceptance = Acceptance(8)
    for _ in range(100):
        acceptance.observe([_make_outcome(0, 0, drafts=1, allowed=1)])
    assert max(_chances(acceptance, 0)) < 0.05


def test_after_a_pause_three_verdicts_change_the_mind() -> None:
    acceptance = Acceptance(4)
    acceptance.of(0)
    for _ in range(100):
        acceptance.observe([_make_outcome(0, 0)])
    assert _chances(acceptance, 0)[0] < 0.05
    for _ in range(100):
        acceptance.observe([_make_outcome(0, 0, drafts=0, allowed=0)])
    assert _chances(acceptance, 0)[0] < 0.05
    for _ in range(3):
        acceptance.observe([_make_outcome(0, 1, drafts=1, allowed=1)])
    assert _chances(acceptance, 0)[0] > 0.3


def test_a_tree_counts_by_depth_and_says_how_deep_its_drafts_go() -> None:
    acceptance = Acceptance(8)
    for _ in range(300):
        acceptance.observe([_make_outcome(0, 3, drafts=8, depth=4, allowed=8)])
    assert acceptance.depth_per_draft == pytest.approx(0.5, abs=0.01)
    assert _chances(acceptance, 0)[:4] == pytest.approx([0.98, 0.98, 0.98, 0.05], abs=0.05)


def test_drafts_that_were_not_found_are_no_verdicts() -> None:
    acceptance = Acceptance(4)
    acceptance.of(0)
    before = acceptance.survival
    for _ in range(50):
        acceptance.observe([_make_outcome(0, 0, drafts=0)])
    assert acceptance.survival == before
    found, ability = acceptance.of(0)
    assert found < 0.05
    assert ability == 1.0


def test_nothing_is_kept_of_a_request_that_has_ended() -> None:
    acceptance = Acceptance(4)
    for request_id in range(50):
        acceptance.of(request_id)
        acceptance.observe([_make_outcome(request_id, 4)])
        acceptance.forget(request_id)
        # Its last step is reported after its end.
        acceptance.observe([_make_outcome(request_id, 4)])
    assert not acceptance._requests
    acceptance.forget(50)
