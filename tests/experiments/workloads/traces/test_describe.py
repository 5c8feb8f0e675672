"""The summary of a trace, against numpy and against prompts written out token by token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.points import ASSETS
from experiments.workloads.traces.base import TraceRow
from experiments.workloads.traces.describe import describe
from experiments.workloads.traces.formats import read_trace

BLOCK = 3


def _make_row(
    arrival_s: float = 0.0, prompt: int | None = 5, output: int = 2, ids: tuple[int, ...] | None = None
) -> TraceRow:
    return TraceRow(line=1, arrival_s=arrival_s, num_prompt_tokens=prompt, num_output_tokens=output, hash_ids=ids)


@settings(max_examples=40, deadline=None)
@given(
    drawn=st.lists(st.tuples(st.floats(0.001, 9), st.integers(0, 900), st.integers(0, 900)), min_size=3, max_size=30)
)
def test_a_summary_is_what_numpy_says(drawn: list[tuple[float, int, int]]) -> None:
    times = np.cumsum([gap for gap, _, _ in drawn])
    found = describe(
        _make_row(at, prompt, output) for at, (_, prompt, output) in zip(times.tolist(), drawn, strict=True)
    )
    good = np.array([(prompt, output) for _, prompt, output in drawn if prompt and output]).reshape(-1, 2)
    gaps = np.diff(times)
    assert (found.num_requests, found.num_failed) == (len(drawn), len(drawn) - len(good))
    assert found.rate_rps == pytest.approx(1 / gaps.mean())
    assert found.gap_cv == pytest.approx(gaps.std() / gaps.mean(), abs=1e-6)
    if len(good):
        assert (found.prompt_tokens_mean, found.output_tokens_mean) == pytest.approx(tuple(good.mean(axis=0)))
        p99 = np.percentile(good, 99, axis=0, method="inverted_cdf")
        assert (found.prompt_tokens_p99, found.output_tokens_p99) == tuple(p99)
    else:
        assert found.prompt_tokens_mean is found.output_tokens_p99 is None


@settings(max_examples=60, deadline=None)
@given(
    prompts=st.lists(
        st.lists(st.integers(0, 2), max_size=4).flatmap(
            # Ids that cover the prompt, and those that cover its beginning alone.
            lambda ids: st.tuples(st.just(tuple(ids)), st.integers(max(1, (len(ids) - 1) * BLOCK + 1), 14))
        ),
        min_size=1,
        max_size=8,
    )
)
def test_what_repeats_is_the_longest_beginning_that_an_earlier_prompt_had(
    prompts: list[tuple[tuple[int, ...], int]],
) -> None:
    def shared(one: list, other: list) -> int:
        return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))

    written = []
    for place, (ids, length) in enumerate(prompts):
        named = [(block, offset) for block in ids for offset in range(BLOCK)]
        own = [("own", place, i) for i in range(length)]
        written.append((named + own)[:length])
    repeated = sum(max((shared(mine, theirs) for theirs in written[:i]), default=0) for i, mine in enumerate(written))
    found = describe((_make_row(prompt=length, ids=ids) for ids, length in prompts), hash_block_tokens=BLOCK)
    assert found.repeated_prefix_fraction == pytest.approx(repeated / sum(len(tokens) for tokens in written))


def test_a_short_prompt_does_not_hide_the_longer_one_before_it() -> None:
    found = describe((_make_row(prompt=length, ids=(1,)) for length in (3, 1, 3)), hash_block_tokens=BLOCK)
    assert found.repeated_prefix_fraction == 4 / 7


def test_what_a_trace_does_not_say_is_none() -> None:
    nothing = describe([])
    assert (nothing.num_requests, nothing.num_failed) == (0, 0)
    assert {getattr(nothing, name) for name in nothing.__slots__ if not name.startswith("num_")} == {None}
    one = describe([_make_row(7.0, prompt=None)])
    assert (one.duration_s, one.rate_rps, one.gap_cv, one.prompt_tokens_mean, one.output_tokens_p99) == (
        0,
        None,
        None,
        None,
        2,
    )
    assert describe([_make_row(), _make_row()]).rate_rps is None


def test_the_shipped_traces_are_described() -> None:
    mooncake = describe(read_trace(str(ASSETS / "traces" / "synthetic_mooncake.jsonl")))
    assert mooncake.num_requests == 24 and mooncake.repeated_prefix_fraction == pytest.approx(0.678, abs=0.001)
    burst = describe(read_trace(str(ASSETS / "traces" / "synthetic_burstgpt_1.csv")))
    assert (burst.num_requests, burst.num_failed, burst.repeated_prefix_fraction) == (18, 2, None)
    assert burst.gap_cv is not None and burst.gap_cv > 1
