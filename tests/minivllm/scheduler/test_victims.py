"""Who is preempted: each choice is the one of its definition, and a choice of somebody else is refused."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from symbolic import make_engine

from minivllm.component import component_of_ours
from minivllm.config import Component, EngineConfig
from minivllm.engine import Engine
from minivllm.request import Request, RequestView
from minivllm.sampling_params import SamplingParams
from minivllm.scheduler.base import PolicyError, SchedulingPolicy
from minivllm.scheduler.victims.base import VictimPolicy


def _make_request(request_id: int, arrival_s: float, num_output: int, predicted: int, num_computed: int) -> Request:
    request = Request(
        request_id=request_id,
        prompt_token_ids=[0] * 9,
        sampling_params=SamplingParams(max_tokens=40),
        sampling_seed=0,
        arrival_s=arrival_s,
        max_total_tokens=50,
        predicted_output_tokens=predicted,
    )
    for _ in range(num_output):
        request.append(1, arrival_s)
    request.num_computed_tokens = num_computed
    return request


class _Backwards(SchedulingPolicy):
    def key(self, request: RequestView, now_s: float) -> tuple[float, ...]:
        return (-request.arrival_s, -request.request_id)


# Worst first, by sorting.
DEFINITIONS = {
    "least_deserving": lambda r: (r.arrival_s, r.request_id),
    "newest": lambda r: (-r.arrival_s, -r.request_id),
    "oldest": lambda r: (r.arrival_s, r.request_id),
    "largest": lambda r: (-r.num_computed_tokens, -r.arrival_s, -r.request_id),
    "smallest": lambda r: (r.num_computed_tokens, r.arrival_s, r.request_id),
    "most_remaining": lambda r: (-(r.predicted_output_tokens - r.num_output_tokens), -r.arrival_s, -r.request_id),
}


@pytest.mark.parametrize("name", DEFINITIONS)
@settings(max_examples=40, deadline=None)
@given(
    numbers=st.lists(
        # Few values, so that ties are common.
        st.tuples(st.sampled_from([0.0, 1.0, 2.5]), st.integers(0, 3), st.integers(1, 6), st.integers(0, 3)),
        min_size=1,
        max_size=9,
    ),
    order=st.randoms(use_true_random=False),
)
def test_the_victim_is_the_one_of_the_definition(name: str, numbers, order) -> None:
    victims = component_of_ours("minivllm.scheduler.victims", name, {}).make("victim", VictimPolicy)
    candidates = [_make_request(i, *values) for i, values in enumerate(numbers)]
    order.shuffle(candidates)
    policy = _Backwards()
    assert victims.choose(candidates, policy, 3.0) is sorted(candidates, key=DEFINITIONS[name])[0]


class _Liar(VictimPolicy):
    """Chooses whom it was told to."""

    def __init__(self) -> None:
        self.choice: object = None

    def choose(self, candidates, policy, now_s):
        return self.choice


@pytest.mark.parametrize("choice", ["nobody", "the one that was served", "one that waits", "another request"])
def test_a_victim_that_is_no_candidate_is_an_error_with_the_name_of_who_chose_it(choice: str) -> None:
    engine = make_engine(num_blocks=5, block_size=2, max_num_seqs=2, prefix_caching=False)
    for _ in range(3):
        engine.add_request([0, 1, 0], SamplingParams(max_tokens=6, ignore_eos=True, seed=0))
    engine.scheduler.victims = liar = _Liar()
    engine.step()
    served, _ = engine.scheduler.running
    liar.choice = {
        "nobody": None,
        "the one that was served": served,
        "one that waits": next(iter(engine.scheduler.waiting)),
        "another request": _make_request(1, 0.0, 0, 1, 0),
    }[choice]
    with pytest.raises(PolicyError, match=r"^victim=_Liar: breaks the rule of victims: .* is no candidate$"):
        for _ in range(10):
            # The last block goes to the one that is served first.
            engine.step()
    engine.check()
    for request_id in range(3):
        engine.abort(request_id)
    engine.check()
    assert engine.scheduler.tables.pool.num_used == 0


def test_the_engine_preempts_whom_the_config_names() -> None:
    """A long request that came first lacks a block beside a short one: the same load, other victims."""
    preempted = {}
    for victim in ("least_deserving.LeastDeserving", "oldest.Oldest", "smallest.Smallest"):
        engine = make_engine(num_blocks=5, block_size=2, max_num_seqs=2, prefix_caching=False, victim=victim)
        for length in (5, 2):
            engine.add_request([0, 1, 0, 1, 1][:length], SamplingParams(max_tokens=6, ignore_eos=True, seed=0))
        done = []
        while engine.has_unfinished:
            engine.step()
            engine.check()
            done += engine.take_finished()
        preempted[victim.split(".")[0]] = {r.request_id for r in done if r.num_preemptions}
    assert preempted == {"least_deserving": {1}, "oldest": {0}, "smallest": {1}}


def test_an_unknown_victim_policy_is_one_line() -> None:
    config = EngineConfig.from_flat(path="x", victim=Component(target="minivllm.scheduler.victims.newest.Nope"))
    with pytest.raises(ValueError, match=r"^victim\._target_='.*newest\.Nope': cannot be imported"):
        Engine(config, make_engine(num_blocks=1, block_size=1).runner)
