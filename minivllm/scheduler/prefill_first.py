"""Prefill-first: vLLM's scheduler before chunked prefill. Prompts go first, in steps of their own, and every decode
waits meanwhile: good for the time to first token, bad for the gaps between tokens."""

from __future__ import annotations

from collections.abc import Sequence

from minivllm.request import RequestView
from minivllm.scheduler.base import SchedulerState, SchedulingPolicy


class PrefillFirst(SchedulingPolicy):
    """Prompts before decodes, never both in one step."""

    mixed_steps = False

    def order(self, state: SchedulerState, now_s: float) -> Sequence[RequestView]:
        everyone = super().order(state, now_s)
        running = {request.request_id for request in state.running}
        # Unfinished prefills, then new prompts, then decodes (which run only if no prompt could be admitted).
        return sorted(everyone, key=lambda r: not r.is_prefill and r.request_id in running)
