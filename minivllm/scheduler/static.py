"""Static batching: what inference looked like before Orca (OSDI 2022), as a baseline. A batch is filled, its prompts
are computed, then it decodes until its last request ends, and only then the next one starts."""

from __future__ import annotations

from collections.abc import Sequence

from minivllm.request import RequestView
from minivllm.scheduler.base import SchedulerState
from minivllm.scheduler.prefill_first import PrefillFirst


class StaticBatching(PrefillFirst):
    """Admit while nobody of the batch has decoded; siblings of a running request (`n` > 1) belong to its batch.

    Prompts go first, so the batch fills up to seats and blocks before the first decode closes it.
    """

    def order(self, state: SchedulerState, now_s: float) -> Sequence[RequestView]:
        everyone = super().order(state, now_s)
        # The first output token comes with the prompt's last chunk; a second one is a decode.
        if all(request.num_output_tokens <= 1 for request in state.running):
            return everyone
        batch = {request.request_id for request in state.running}
        return [r for r in everyone if r.request_id in batch or r.parent_id in batch]
