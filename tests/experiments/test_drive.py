"""The driver against a real engine on a virtual clock, where every time is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from plain_metrics import request_rows
from virtual_engine import make_engine

from experiments.drive import Collected, Driven, drive
from experiments.points import Slo
from experiments.workloads.base import WorkloadItem
from minivllm.engine import Engine
from minivllm.plan import StepReport
from minivllm.request import Request
from minivllm.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0)


def _make_items(count: int, max_tokens: int = 3, arrivals: list[float] | None = None) -> list[WorkloadItem]:
    return [
        WorkloadItem(prompt_token_ids=(i % 10, 1), max_tokens=max_tokens, arrival_s=arrivals[i] if arrivals else None)
        for i in range(count)
    ]


def _drive(
    engine: Engine, items: list[WorkloadItem], *, concurrency: int | None, sampling: SamplingParams = GREEDY
) -> tuple[Driven, Collected]:
    heard = Collected()
    return drive(engine, iter(items), sampling, concurrency=concurrency, listener=heard), heard


def _rows(heard: Collected, slo: Slo | None = None, origin_s: float = 100.0) -> list[dict[str, Any]]:
    return request_rows(heard, slo or Slo(), origin_s)


def test_a_closed_loop_keeps_its_clients_busy_and_no_more() -> None:
    driven, heard = _drive(make_engine(), _make_items(5), concurrency=2)
    # Two at a time, three steps each.
    assert [row["arrival_s"] for row in _rows(heard)] == [0.0, 0.0, 1.5, 1.5, 3.0]
    assert [step.num_running for step in heard.steps][:2] == [2, 2]
    assert driven.end_s - driven.start_s == pytest.approx(4.5)
    assert heard.lateness_s == {}


def test_all_continuations_of_a_prompt_occupy_one_client() -> None:
    driven, heard = _drive(make_engine(), _make_items(3), concurrency=1, sampling=SamplingParams(temperature=1, n=2))
    rows = _rows(heard)
    assert len(rows) == 6
    for pair, after in ((rows[0:2], rows[2:4]), (rows[2:4], rows[4:6])):
        assert [row["arrival_s"] for row in after] == [max(row["finish_s"] for row in pair)] * 2


def test_an_open_loop_counts_from_when_a_request_was_due() -> None:
    items = _make_items(3, arrivals=[0.25, 0.6, 3.0])
    driven, heard = _drive(make_engine(), items, concurrency=None)
    rows = _rows(heard)
    assert [row["arrival_s"] for row in rows] == pytest.approx([0.25, 0.6, 3.0])
    # The second came in the middle of a step, and the client saw it at its end.
    assert list(heard.lateness_s.values()) == pytest.approx([0.0, 0.15, 0.0])
    assert [row["first_scheduled_s"] for row in rows] == pytest.approx([0.25, 0.75, 3.0])
    assert [row["queue_s"] for row in rows] == pytest.approx([0.0, 0.15, 0.0])
    assert [row["ttft_s"] for row in rows] == pytest.approx([0.5, 0.65, 0.5])
    # Nobody spins while nothing is due: three steps for the first two, staggered by one, and three for the last.
    assert len(heard.steps) == 7


def test_an_engine_that_cannot_keep_up_shows_its_queue() -> None:
    items = _make_items(4, arrivals=[0.0, 0.0, 0.0, 0.0])
    driven, heard = _drive(make_engine(max_num_seqs=1), items, concurrency=None)
    assert [row["queue_s"] for row in _rows(heard)] == pytest.approx([0.0, 1.5, 3.0, 4.5])


def _make_chat(*think_s: float, tokens: int = 3, **first: Any) -> list[WorkloadItem]:
    """A conversation: each turn says one token of its own, its number."""
    later = [
        WorkloadItem(prompt_token_ids=(i + 1,), max_tokens=tokens, follows=i, think_s=pause_s)
        for i, pause_s in enumerate(think_s)
    ]
    return [WorkloadItem(prompt_token_ids=(0,), max_tokens=tokens, **first), *later]


def test_a_turn_is_due_after_a_pause_and_says_all_that_was_said() -> None:
    driven, heard = _drive(make_engine(), _make_chat(0.7, 2.0, arrival_s=1.0), concurrency=None)
    rows = _rows(heard)
    assert [row["arrival_s"] for row in rows] == pytest.approx([1.0, 1.0 + 1.5 + 0.7, 1.0 + 1.5 + 0.7 + 1.5 + 2.0])
    assert [r.token_ids[: r.num_prompt_tokens] for r in heard.requests] == [
        [0],
        [0, 7, 7, 7, 1],
        [0, 7, 7, 7, 1, 7, 7, 7, 2],
    ]
    assert (driven.num_offered, driven.num_dropped) == (3, 0)
    assert driven.last_due_s == pytest.approx(100 + 6.7)


def test_a_turn_that_is_due_in_the_middle_of_a_step_is_late() -> None:
    other = WorkloadItem(prompt_token_ids=(5,), max_tokens=20, arrival_s=0.0)
    items = [other, *(_shift(item, 1) for item in _make_chat(0.7, arrival_s=0.0))]
    _, heard = _drive(make_engine(), items, concurrency=None)
    # The first turn ends at 1.5, and steps end each half second.
    assert heard.lateness_s[2] == pytest.approx(0.3)
    assert _rows(heard)[2]["arrival_s"] == pytest.approx(2.2)


def _shift(item: WorkloadItem, by: int) -> WorkloadItem:
    return item if item.follows is None else dataclasses.replace(item, follows=item.follows + by)


def test_a_conversation_keeps_its_client_while_it_thinks() -> None:
    chat = _make_chat(1.0)
    items = [*chat, WorkloadItem(prompt_token_ids=(9,), max_tokens=3)]
    _, heard = _drive(make_engine(), items, concurrency=1)
    assert [row["arrival_s"] for row in _rows(heard)] == pytest.approx([0.0, 2.5, 4.0])
    assert heard.requests[2].token_ids[0] == 9


def test_two_turns_that_follow_the_same_one_both_come() -> None:
    first, second = _make_chat(1.0)
    third = dataclasses.replace(second, think_s=0.5, prompt_token_ids=(4,))
    driven, heard = _drive(make_engine(), [first, second, third, *_make_items(1)], concurrency=1)
    assert [r.token_ids[4:5] for r in heard.requests] == [[], [4], [1], [7]]
    assert _rows(heard)[3]["arrival_s"] == pytest.approx(max(r["finish_s"] for r in _rows(heard)[:3]))
    assert driven.num_offered == 4


@pytest.mark.parametrize("limit", [{"longest": 12}, {"num_blocks": 3}])
def test_a_turn_that_outgrows_the_context_is_dropped_with_all_behind_it(limit: dict[str, int]) -> None:
    # 1 + 3, 4 + 1 + 3, and then 8 + 1 + 4 are too many for 12 (the last one is never computed).
    items = _make_chat(0.5, 0.5, 0.5, arrival_s=0.0)
    items[2:] = [dataclasses.replace(item, max_tokens=5) for item in items[2:]]
    engine = make_engine(**limit)
    driven, heard = _drive(engine, items, concurrency=None)
    expected = 3 if "longest" in limit else 2
    assert len(heard.requests) == expected
    assert (driven.num_offered, driven.num_dropped) == (4, 4 - expected)


def test_a_turn_behind_one_that_failed_is_dropped() -> None:
    engine = make_engine()

    class Aborts(Collected):
        def on_step(self, report: StepReport) -> None:
            super().on_step(report)
            engine.abort(0)

    heard = Aborts()
    items = [*_make_chat(0.5, 0.5, arrival_s=0.0), WorkloadItem(prompt_token_ids=(9,), max_tokens=2, arrival_s=3.0)]
    driven = drive(engine, items, GREEDY, concurrency=None, listener=heard)
    assert [r.finish_reason and r.finish_reason.value for r in heard.requests] == ["abort", "length"]
    assert (driven.num_offered, driven.num_dropped) == (4, 2)


def test_a_turn_that_stands_elsewhere_is_one_line() -> None:
    items = _make_items(3)
    with pytest.raises(ValueError, match="item 3 follows item 0, which does not stand in its own conversation"):
        _drive(make_engine(), [*items, WorkloadItem(prompt_token_ids=(1,), max_tokens=1, follows=0)], concurrency=1)
    with pytest.raises(ValueError, match="item 0 follows item 4"):
        _drive(make_engine(), [WorkloadItem(prompt_token_ids=(1,), max_tokens=1, follows=4)], concurrency=1)


def test_items_are_read_when_they_are_needed() -> None:
    read: list[int] = []

    def items() -> Iterator[WorkloadItem]:
        for i, item in enumerate(_make_items(50)):
            read.append(i)
            yield item

    furthest: list[int] = []

    class Watches(Collected):
        def on_request(self, request: Request, lateness_s: float | None) -> None:
            furthest.append(len(read) - len(furthest))

    drive(make_engine(), items(), GREEDY, concurrency=3, listener=Watches())
    assert len(furthest) == 50 and max(furthest) <= 3 + 1


def test_the_engine_hears_who_sent_a_request_and_how_urgent_it_is() -> None:
    item = WorkloadItem(prompt_token_ids=(1,), max_tokens=1, client_id=3, priority=-2)
    _, heard = _drive(make_engine(), [item], concurrency=1)
    assert (heard.requests[0].client_id, heard.requests[0].priority) == (3, -2)


@pytest.mark.parametrize(("arrivals", "until_s", "begins"), [([0.0], 4.0, [4.0]), ([0.0, 1.25], 4.0, [1.25, 1.25])])
def test_while_a_policy_waits_the_client_sleeps_until_it_is_time_or_somebody_comes(
    arrivals: list[float], until_s: float, begins: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    step, asked = engine.step, []

    def waits() -> StepReport:
        asked.append(engine.clock.now_s())
        if len(engine.scheduler.waiting) + len(engine.scheduler.running) < 2 and engine.clock.now_s() < 100 + until_s:
            return dataclasses.replace(_IDLE, idle_until_s=100 + until_s)
        return step()

    monkeypatch.setattr(engine, "step", waits)
    _, heard = _drive(engine, _make_items(len(arrivals), 1, arrivals), concurrency=None)
    assert [row["first_scheduled_s"] for row in _rows(heard)] == begins
    assert len(asked) == 2 and len(heard.steps) == 1


_IDLE = StepReport(
    step=0,
    start_s=0.0,
    duration_s=0.0,
    schedule_s=0.0,
    run_s=0.0,
    commit_s=0.0,
    num_prefill_tokens=0,
    num_decode_tokens=0,
    num_running=0,
    num_waiting=1,
    kv_blocks_used=0,
    kv_blocks_cached=0,
    kv_slots_unused=0,
    num_evictions=0,
    num_preemptions=0,
    num_recomputed_tokens=0,
)
