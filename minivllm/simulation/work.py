"""A plan's work, counted."""

from __future__ import annotations

from minivllm.plan import StepPlan
from minivllm.simulation.base import StepWork


def step_work(plan: StepPlan) -> StepWork:
    """What a step computes. A newest token with drafts behind it is a short prefill, all of whose tokens are read by
    the head."""
    decodes, decode_context = len(plan.decodes), sum(plan.decode_starts) + len(plan.decodes)
    prefill_tokens = prefills = sampled = prefill_context = pairs = 0
    for _, start, num_tokens, samples, num_draft_tokens in plan.others:
        count = num_tokens + num_draft_tokens
        if count == 1 and start and samples:
            decodes += 1
            decode_context += start + 1
            continue
        prefills += 1
        prefill_tokens += count
        prefill_context += start + count
        pairs += count * start + count * (count + 1) // 2
        if samples:
            sampled += 1 + num_draft_tokens
    return StepWork(
        num_prefill_tokens=prefill_tokens,
        num_prefill_requests=prefills,
        num_decode_tokens=decodes,
        num_sampled_tokens=sampled + decodes,
        num_prefill_context_tokens=prefill_context,
        num_decode_context_tokens=decode_context,
        num_prefill_pairs=pairs,
    )
