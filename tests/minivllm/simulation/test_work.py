"""A plan's work is what counting token by token says."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from simulating import simulated_engine

from minivllm.plan import Chunk, StepPlan
from minivllm.sampling_params import SamplingParams
from minivllm.simulation.base import StepWork
from minivllm.simulation.work import step_work


def _by_token(plan: StepPlan) -> StepWork:
    """The slow way."""
    counts = dict.fromkeys(StepWork.__dataclass_fields__, 0)
    for chunk in plan.chunks:
        positions = range(chunk.start, chunk.start + chunk.num_tokens + chunk.num_draft_tokens)
        kind = "decode" if len(positions) == 1 and chunk.samples and chunk.start > 0 else "prefill"
        counts[f"num_{kind}_tokens"] += len(positions)
        counts[f"num_{kind}_context_tokens"] += positions[-1] + 1
        if kind == "prefill":
            counts["num_prefill_requests"] += 1
            counts["num_prefill_pairs"] += sum(position + 1 for position in positions)
        counts["num_sampled_tokens"] += (1 + chunk.num_draft_tokens) if chunk.samples else 0
    return StepWork(**counts)


@st.composite
def _chunks(draw: st.DrawFn) -> Chunk:
    start, samples = draw(st.integers(0, 40)), draw(st.booleans())
    num_tokens = draw(st.integers(1, 9))
    drafts = draw(st.integers(0, 4)) if samples and num_tokens == 1 and start else 0
    return Chunk(request_id=0, start=start, num_tokens=num_tokens, samples=samples, num_draft_tokens=drafts)


@given(st.lists(_chunks(), max_size=7))
@settings(max_examples=100, deadline=None)
def test_work_is_counted_as_token_by_token(chunks: list[Chunk]) -> None:
    decodes = [c for c in chunks if c.start and c.samples and c.num_tokens == 1 and not c.num_draft_tokens]
    plan = StepPlan(
        step=0,
        released=(),
        new_rows=(),
        table_updates=(),
        copies=(),
        decodes=tuple(c.request_id for c in decodes),
        decode_starts=tuple(c.start for c in decodes),
        others=tuple(c for c in chunks if c not in decodes),
    )
    work = step_work(plan)
    assert work == _by_token(plan)
    assert work.num_tokens == sum(c.num_tokens + c.num_draft_tokens for c in chunks)


def test_a_request_is_counted_as_the_engine_runs_it() -> None:
    engine = simulated_engine(max_num_batched_tokens=4)
    seen: list[StepWork] = []
    model = engine.runner.step_time
    engine.runner.step_time = type("Seen", (), {"step_s": lambda _, work: seen.append(work) or model.step_s(work)})()
    engine.add_request([7] * 6, SamplingParams(max_tokens=3))
    while engine.has_unfinished:
        engine.step()
    first = StepWork(
        num_prefill_tokens=4, num_prefill_requests=1, num_prefill_context_tokens=4, num_prefill_pairs=1 + 2 + 3 + 4
    )
    second = StepWork(
        num_prefill_tokens=2,
        num_prefill_requests=1,
        num_prefill_context_tokens=6,
        num_prefill_pairs=5 + 6,
        num_sampled_tokens=1,
    )
    decodes = [StepWork(num_decode_tokens=1, num_decode_context_tokens=n, num_sampled_tokens=1) for n in (7, 8)]
    assert seen == [first, second, *decodes]
