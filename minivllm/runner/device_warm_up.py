"""Requests made up before there are any, so that whatever drafting launches is compiled when the first one drafts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from minivllm.config import EngineConfig
from minivllm.plan import Chunk, NewRow, StepPlan, TableUpdate
from minivllm.runner.base import Runner
from minivllm.runner.device_flight import Flight
from minivllm.runner.drafting import StepDrafts
from minivllm.sampling_params import SamplingParams
from minivllm.speculation.base import Drafter, HostDrafter

# Of chunks: kernels are chosen by how long the longest is.
LENGTHS = (1, 2, 3, 8, 16, 17, 33, 65, 129, 257)


def warm_up_drafts(runner: Runner, drafter: Drafter, config: EngineConfig) -> bool:
    """Let made-up requests draft and be verified.

    They write into the pool's first blocks, which nobody has yet: whoever gets these reads what it wrote itself.

    Returns:
        whether drafts are chains, nothing of which the target has computed yet.
    """
    if isinstance(drafter, HostDrafter):
        return True
    max_rows, most = config.scheduler.max_num_seqs, config.speculation.num_draft_tokens
    size = config.cache.block_size
    room = min(runner.num_blocks * size, runner.max_model_len) - most - 1
    longest = min(config.scheduler.max_num_batched_tokens, room)
    if longest < 1:
        # No request can draft.
        return True
    lens = sorted({min(length, longest) for length in (*LENGTHS, longest)})
    chains = True
    for num_rows in sorted({1, min(3, max_rows), max_rows}):
        for length in lens if num_rows <= 3 else (lens[0], lens[-1]):
            for temperature in (0.0, 1.0) if length == lens[0] else (0.0,):
                params = SamplingParams(temperature=temperature, seed=0)
                found = _draft_once(runner, [length] + [1] * (num_rows - 1), most, params, size)
                chains &= found is None or (found.tree is None and found.resume is None)
    return chains


def _draft_once(
    runner: Runner, lens: Sequence[int], num_drafts: int, params: SamplingParams, block_size: int
) -> StepDrafts | None:
    """Two steps of requests with prompts of these lengths: they read them, and then they draft."""
    given = [*zip(range(-len(lens), 0), lens, strict=True)]
    blocks = tuple(range(-(-(max(lens) + num_drafts + 1) // block_size)))
    begin = StepPlan(
        step=0,
        released=(),
        new_rows=tuple(
            NewRow(request_id=i, token_ids=(0,) * n, num_prompt_tokens=n, sampling_params=params, sampling_seed=0)
            for i, n in given
        ),
        table_updates=tuple(TableUpdate(request_id=i, first=0, block_ids=blocks) for i, _ in given),
        copies=(),
        others=tuple(Chunk(request_id=i, start=0, num_tokens=n, samples=True) for i, n in given),
    )
    draft = replace(
        begin,
        new_rows=(),
        table_updates=(),
        others=tuple(
            Chunk(request_id=i, start=n, num_tokens=1, samples=True, num_draft_tokens=num_drafts) for i, n in given
        ),
    )
    runner.launch(begin).wait()
    flight = runner.launch(draft)
    flight.wait()
    runner.launch(replace(draft, released=tuple(i for i, _ in given), others=()))
    assert isinstance(flight, Flight)
    return flight.drafts
