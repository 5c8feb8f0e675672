"""The offered load: parts go together, streams do not shift each other, and nothing is kept."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from loads import NUM_DRAWS, make_component, make_load, make_part

from experiments.compose import groups
from experiments.workloads.arrivals.poisson import Poisson
from experiments.workloads.base import Streams, WorkloadItem, workload_sha256
from experiments.workloads.clients.several import Several
from experiments.workloads.offered import OfferedLoad
from experiments.workloads.prompts import LengthsOnly, PromptSource, RandomTokens
from experiments.workloads.traffic import Traffic

ROOT = Path(__file__).resolve().parents[3]
PLAIN = ("closed_loop", "poisson", "shared_prefix", "long_document", "code_completion", "prose", "prefix_tree", "chat")


def _make_traffic(num_requests: int, member: str = "lognormal", **parts: object) -> OfferedLoad:
    workload = Traffic(num_requests=num_requests, request_rate_rps=4.0).with_lengths(make_part("lengths", member), 2048)
    return OfferedLoad(workload, parts.pop("source", LengthsOnly(1000)), seed=0, repeat=0, **parts)


def _contents(items: Iterable[WorkloadItem]) -> list[tuple[object, ...]]:
    return [(i.prompt_token_ids, i.max_tokens, i.sampling_seed) for i in items]


def test_every_pass_makes_the_same_requests() -> None:
    load = make_load("workload=traffic", "arrivals=gamma", "clients=several")
    assert load.concurrency is None and list(load) == list(load)
    assert load.sha256 == workload_sha256(load)
    assert load.num_requests == len(list(load)) == 64


def test_a_broken_off_pass_disturbs_nobody() -> None:
    load = make_load("workload=prefix_tree", "clients=several")
    whole = list(load)
    passes = iter(load), iter(load)
    assert [next(passes[k % 2]) for k in range(20)] == [whole[k // 2] for k in range(20)]
    assert load.sha256 == workload_sha256(whole)


@pytest.mark.parametrize("workload", PLAIN)
def test_arrivals_and_clients_go_with_any_workload_and_change_nothing_else(workload: str) -> None:
    plain = make_load(f"workload={workload}")
    parts = {"arrivals": make_component("arrivals", "gamma"), "clients": make_component("clients", "several")}
    changed = make_load(f"workload={workload}", **parts)
    assert _contents(plain) == _contents(changed)
    times = [item.arrival_s for item in changed if item.follows is None]
    assert changed.concurrency is None and times == sorted(times) and times[0] > 0
    assert len({item.client_id for item in changed}) > 1


def test_poisson_arrivals_are_those_that_a_workload_has_of_its_own() -> None:
    own = make_load("workload=poisson", "workload.num_requests=32")
    chosen = make_load("workload=closed_loop", arrivals=make_component("arrivals", "poisson", rate_rps=4.0))
    assert list(own) == list(chosen) and own.concurrency is chosen.concurrency is None
    # Times that the workload drew and nobody used shift nothing.
    again = make_load("workload=poisson", "workload.num_requests=32", arrivals=make_component("arrivals", "poisson"))
    assert list(again) == list(own)


def test_chosen_arrivals_have_the_rate_of_the_workload_or_one_of_their_own() -> None:
    def last_s(*overrides: str) -> float:
        return list(make_load("workload=traffic", "arrivals=constant", *overrides))[-1].arrival_s

    assert [last_s(), last_s("workload.request_rate_rps=8"), last_s("arrivals.rate_rps=2")] == [16.0, 8.0, 32.0]
    with pytest.raises(ValueError, match=r"^arrivals.rate_rps=None: must be a number above 0$"):
        make_load("workload=closed_loop", "arrivals=constant")


def test_a_closed_loop_may_send_what_else_comes_by_the_clock() -> None:
    load = make_load("workload=poisson", "arrivals=closed_loop", "arrivals.concurrency=5")
    assert load.concurrency == 5
    assert {item.arrival_s for item in load} == {None}


@pytest.mark.parametrize(
    ("stream", "change"),
    [
        ("arrivals", {"arrivals": Poisson(rate_rps=2.0)}),
        ("clients", {"clients": Several(num_clients=9, priorities={0: 1, 1: 1})}),
        ("prompts", {"source": RandomTokens(97)}),
        ("lengths", {"member": "zipf"}),
    ],
)
def test_another_answer_to_one_question_shifts_no_other_stream(stream: str, change: dict) -> None:
    def streams(load: OfferedLoad) -> dict[str, list[object]]:
        items = list(load)
        return {
            "arrivals": [i.arrival_s for i in items],
            "clients": [(i.client_id, i.priority) for i in items],
            "lengths": [(len(i.prompt_token_ids), i.max_tokens) for i in items],
            # First tokens: longer prompts take more draws, of nothing but prompts.
            "prompts": [items[0].prompt_token_ids[:1]],
            "sampling": [i.sampling_seed for i in items],
        }

    before, after = streams(_make_traffic(50)), streams(_make_traffic(50, **change))
    assert {name for name in before if before[name] != after[name]} == {stream}


def test_more_requests_begin_like_fewer() -> None:
    parts = {"arrivals": make_part("arrivals", "ramp"), "clients": make_part("clients", "sources")}
    assert list(islice(_make_traffic(5000, **parts), 1500)) == list(_make_traffic(1500, **parts))


def test_a_client_has_the_priority_of_its_source() -> None:
    sources = make_part("clients", "sources", sources=[{"priority": 1}, {"priority": 7, "rate_multiplier": 3.0}])
    load = _make_traffic(400, arrivals=Poisson(rate_rps=1.0), clients=sources)
    assert {(i.client_id, i.priority) for i in load} == {(0, 1), (1, 7)}


@dataclass(frozen=True)
class _Talks:
    """Two conversations a time of three turns, one turn after the other."""

    num_requests: int = 60
    prompts: str = "random"
    concurrency: int | None = None

    def items(self, streams: Streams, source: PromptSource) -> Iterator[WorkloadItem]:
        for place in range(self.num_requests):
            first = WorkloadItem(prompt_token_ids=(1,), max_tokens=1, arrival_s=0.0, client_id=77, priority=place)
            turn = place % 6 // 2
            yield first if turn == 0 else replace(first, arrival_s=None, follows=place - 2, think_s=1.0)


def test_a_conversation_keeps_its_client_and_only_its_first_turn_has_a_time() -> None:
    clients = Several(num_clients=5, priorities={0: 1, 1: 1})
    load = OfferedLoad(_Talks(), RandomTokens(9), seed=0, repeat=0, arrivals=Poisson(rate_rps=1.0), clients=clients)
    items = list(load)
    first = [item for item in items if item.follows is None]
    assert [i.arrival_s for i in first] == list(islice(Poisson(rate_rps=1.0).times(load.streams().arrivals), 20))
    assert len({(i.client_id, i.priority) for i in first}) > 4
    for item in items:
        if item.follows is not None:
            before = items[item.follows]
            assert (item.client_id, item.priority) == (before.client_id, before.priority)
            assert item.arrival_s is None and item.think_s == 1.0
    # Nobody chose clients: the workload's own stay, and so do its priorities.
    own = list(OfferedLoad(_Talks(), RandomTokens(9), seed=0, repeat=0, arrivals=Poisson(rate_rps=1.0)))
    assert {i.client_id for i in own} == {77} and [i.priority for i in own] == list(range(60))


def test_what_policies_see_beside_is_in_the_hash() -> None:
    item = WorkloadItem(prompt_token_ids=(1, 2), max_tokens=3)
    others = [item, replace(item, priority=1), replace(item, follows=0), replace(item, follows=0, think_s=1.0)]
    assert len({workload_sha256([other]) for other in others}) == 4


def test_times_that_end_too_early_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "times.csv"
    path.write_text("arrival_s\n1\n2\n3.5\n")
    times = make_part("arrivals", "trace", path=str(path))
    with pytest.raises(ValueError, match=r"end after 3 requests of workload.num_requests=4; workload.num_requests=3"):
        list(_make_traffic(4, arrivals=times))
    assert [item.arrival_s for item in _make_traffic(3, arrivals=times)] == [0.0, 1.0, 2.5]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["workload=traffic", "lengths=workload"], "lengths=workload: this workload has no lengths of its own"),
        (["workload=poisson", "lengths=zipf"], "this workload has lengths of its own; choose workload=traffic"),
        (["clients=sources"], "clients=sources: each client needs arrivals of its own rate"),
        (
            ["workload=traffic", "workload.max_total_tokens=4096"],
            "at most the context, model.max_model_len=2048",
        ),
        (["workload=traffic", "workload.too_long=cut"], "workload.too_long='cut': must be one of redraw, clip, error"),
        (["workload=prefix_tree", "workload.depth=99"], "workload.max_total_tokens=2048: must be at least 12802"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(overrides: list[str], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        list(make_load(*overrides))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_load_of_many_requests_needs_the_memory_of_few() -> None:
    def peak(num_requests: int) -> int:
        parts = {"arrivals": make_part("arrivals", "ramp"), "clients": None}
        load = _make_traffic(num_requests, **parts)
        tracemalloc.start()
        for _ in load:
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    few, many = peak(500), peak(3000)
    assert many < few + 50_000


PROCESS = """
from loads import make_part
from experiments.compose import groups
from experiments.workloads.offered import OfferedLoad
from experiments.workloads.prompts import LengthsOnly
from experiments.workloads.traffic import Traffic

workload = Traffic(num_requests=1500, request_rate_rps=3.0)
lengths = {name: make_part("lengths", name) for name in groups()["lengths"] if name not in ("workload", "separate")}
parts = [{}]
names = [name for name in groups()["arrivals"] if name not in ("workload", "trace")]
parts += [{"arrivals": make_part("arrivals", name)} for name in names]
parts += [{"clients": make_part("clients", "several")}]
parts += [{"arrivals": make_part("arrivals", "gamma"), "clients": make_part("clients", "sources")}]
for name, chosen in lengths.items():
    for more in parts if name == "lognormal" else parts[:1]:
        print(name, OfferedLoad(workload.with_lengths(chosen, 2048), LengthsOnly(999), seed=5, repeat=1, **more).sha256)
"""


def test_seeds_reproduce_to_the_byte_across_processes() -> None:
    paths = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests" / "support")]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": str(seed)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in (1, 2)
    ]
    said = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert said[0] == said[1]
    num_arrivals, num_lengths = len(groups()["arrivals"]) - 2, len(groups()["lengths"]) - 2
    assert len(set(said[0].splitlines())) == num_lengths + num_arrivals + 2


def test_lengths_only_prompts_are_all_different_from_their_first_tokens() -> None:
    generator = np.random.default_rng(0)
    source = LengthsOnly(128_000)
    prompts = [source.tokens(9, generator) for _ in range(NUM_DRAWS // 4)]
    assert len({prompt[:4] for prompt in prompts}) == len(prompts)
    assert {prompt[4:] for prompt in prompts} == {(0,) * 5}
    assert all(0 <= token < 128_000 for prompt in prompts[:100] for token in prompt)


@pytest.mark.parametrize("vocab_size", [2, 3, 97, 2**16, 2**63])
@pytest.mark.parametrize("count", [1, 2, 63, 100])
def test_lengths_only_prompts_have_their_length_in_any_vocabulary(vocab_size: int, count: int) -> None:
    prompt = LengthsOnly(vocab_size).tokens(count, np.random.default_rng(0))
    assert len(prompt) == count and all(0 <= token < vocab_size for token in prompt)
    generator = np.random.default_rng(1)
    assert count < 63 or len({LengthsOnly(vocab_size).tokens(count, generator) for _ in range(99)}) == 99
    if count > 63:
        # Nothing but the number is in it.
        again = LengthsOnly(vocab_size).tokens(count + 9, np.random.default_rng(0))
        assert again[:count] == prompt and set(again[63:]) == {0}
