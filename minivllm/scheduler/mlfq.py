"""Skip-join multi-level feedback queues: FastServe (arXiv 2305.05920). No length is predicted: whoever has
had much ranks behind whoever has had little.

Service is counted in output tokens, that is in decode steps, and a prompt's tokens as some fraction of one each, so
that no clock decides and a run repeats itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minivllm.component import is_count, require
from minivllm.request import RequestView
from minivllm.scheduler.base import SchedulingPolicy, Served


@dataclass(slots=True)
class _Job:
    """Its queue, what it has had in there, and when it was served last."""

    level: int
    attained: float
    served_s: float


class MultiLevelFeedback(SchedulingPolicy):
    """Queues 0, 1, ... with quanta that grow; the lowest number is served first, each in order of arrival.

    Args:
        num_levels: queues.
        quantum_tokens: service in queue 0 before a request falls to queue 1.
        growth: how many times longer the quantum of the next queue is.
        prompt_token_cost: output tokens that one prompt token counts for. A request joins the first queue whose quantum
            covers its prompt and first token (skip-join): above, it would only be demoted.
        starve_s: whoever was not served for so long goes back to queue 0.
    """

    preemptive = True

    def __init__(
        self,
        num_levels: int = 6,
        quantum_tokens: float = 16.0,
        growth: float = 2.0,
        prompt_token_cost: float = 0.02,
        starve_s: float = 10.0,
    ) -> None:
        require(is_count(num_levels), "scheduler.num_levels", num_levels, "1 or more")
        require(quantum_tokens > 0, "scheduler.quantum_tokens", quantum_tokens, "above 0")
        require(growth >= 1, "scheduler.growth", growth, "1 or more")
        require(prompt_token_cost >= 0, "scheduler.prompt_token_cost", prompt_token_cost, "0 or more")
        require(starve_s > 0, "scheduler.starve_s", starve_s, "above 0")
        self._quanta = [quantum_tokens * growth**level for level in range(num_levels)]
        self._prompt_token_cost = prompt_token_cost
        self._starve_s = starve_s
        self._jobs: dict[int, _Job] = {}

    def level(self, request: RequestView, now_s: float) -> int:
        """The queue that a request is in."""
        job = self._jobs[request.request_id]
        return 0 if now_s - job.served_s >= self._starve_s else job.level

    def key(self, request: RequestView, now_s: float) -> tuple[float, ...]:
        return (self.level(request, now_s), request.arrival_s, request.request_id)

    def on_arrival(self, request: RequestView, now_s: float) -> None:
        first = 1 + self._prompt_token_cost * request.num_prompt_tokens
        last = len(self._quanta) - 1
        level = next((level for level, quantum in enumerate(self._quanta) if quantum >= first), last)
        self._jobs[request.request_id] = _Job(level, 0.0, now_s)

    def on_served(self, served: Sequence[Served], now_s: float) -> None:
        for request, num_prefill_tokens, num_output_tokens in served:
            job = self._jobs.get(request.request_id)
            if job is None:
                continue
            if now_s - job.served_s >= self._starve_s:
                job.level, job.attained = 0, 0.0
            job.served_s = now_s
            job.attained += num_output_tokens + self._prompt_token_cost * num_prefill_tokens
            if job.attained >= self._quanta[job.level] and job.level < len(self._quanta) - 1:
                job.level, job.attained = job.level + 1, 0.0

    def on_finish(self, request: RequestView, now_s: float) -> None:
        del self._jobs[request.request_id]
