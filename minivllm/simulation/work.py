"""A plan's work, counted."""

from __future__ import annotations

from collections.abc import Mapping

from minivllm.plan import StepPlan
from minivllm.simulation.base import StepWork


def step_work(plan: StepPlan, drafted: Mapping[int, int] | None = None) -> StepWork:
    """What a step computes. A newest token with drafts behind it is a short prefill, all of whose tokens are read by
    the head.

    Args:
        plan: of the step.
        drafted: request id to the drafts that were verified behind its chunk, where a drafter may have found fewer
            than the plan allows; as many as that where None.
    """
    # Each sees its own token too.
    decodes, decode_context = len(plan.decodes), sum(plan.decode_starts) + len(plan.decodes)
    prefill_tokens = prefills = sampled = prefill_context = pairs = 0
    for request_id, start, num_tokens, samples, num_draft_tokens in plan.others:
        num_drafts = num_draft_tokens if drafted is None else drafted.get(request_id, 0)
        count = num_tokens + num_drafts
        if count == 1 and start and samples:
            decodes += 1
            decode_context += start + 1
            continue
        prefills += 1
        prefill_tokens += count
        prefill_context += start + count
        # A token at start sees those before it and itself, and each one behind it one more.
        pairs += count * start + count * (count + 1) // 2
        if samples:
            sampled += 1 + num_drafts
    return StepWork(
        num_prefill_tokens=prefill_tokens,
        num_prefill_requests=prefills,
        num_decode_tokens=decodes,
        num_sampled_tokens=sampled + decodes,
        num_prefill_context_tokens=prefill_context,
        num_decode_context_tokens=decode_context,
        num_prefill_pairs=pairs,
        num_swapped_blocks=plan.num_swapped_blocks,
    )
