"""Fair shares by client: the virtual token counter (Sheng et al., "Fairness in serving large language models", OSDI
2024, arXiv 2401.00588, algorithm 2).

Each client has a counter of the service that it got, prompt and output tokens weighed; the next request comes from the
client with the least. A client that comes back is lifted to the least of those who wait, so that nobody saves up
service by being away. While two clients have requests waiting, their counters differ by at most
max(prompt weight * longest prompt, output weight * tokens that fit the K/V pool) (theirs, lemma 4.3).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

from minivllm.component import require
from minivllm.request import RequestView
from minivllm.scheduler.base import SchedulerState, SchedulingPolicy, Served


class VirtualTokenCounter(SchedulingPolicy):
    """Work-conserving: whoever runs goes on, and fairness decides who is let in.

    A request waits until it is served first; one that was preempted is not lifted for again. Its prompt is charged
    once, whatever a preemption has it computed again.

    Args:
        prompt_token_weight: of a prompt token; the paper's is 1.
        output_token_weight: of an output token; the paper's is 2.
    """

    def __init__(self, prompt_token_weight: float = 1.0, output_token_weight: float = 2.0) -> None:
        for name, weight in (
            ("prompt_token_weight", prompt_token_weight),
            ("output_token_weight", output_token_weight),
        ):
            valid = isinstance(weight, (int, float)) and weight > 0
            require(valid, f"scheduler.{name}", weight, "above 0")
        self._prompt_weight = prompt_token_weight
        self._output_weight = output_token_weight
        self._counters: dict[int, float] = {}
        # Requests never served so far, and how many of them each client has.
        self._unserved: set[int] = set()
        self._num_waiting: Counter[int] = Counter()
        self._last_to_leave: int | None = None

    def counter(self, client_id: int) -> float:
        """Service that a client got, and what it was lifted by."""
        return self._counters.get(client_id, 0.0)

    def key(self, request: RequestView, now_s: float) -> tuple[float, ...]:
        return (self.counter(request.client_id), request.arrival_s, request.request_id)

    def order(self, state: SchedulerState, now_s: float) -> Sequence[RequestView]:
        running = sorted(state.running, key=lambda request: self.key(request, now_s))
        num_seats = state.max_num_seqs - len(running)
        if num_seats <= 0:
            return running
        queues: dict[int, deque[RequestView]] = {}
        for request in sorted(state.waiting, key=lambda request: (request.arrival_s, request.request_id)):
            queues.setdefault(request.client_id, deque()).append(request)
        # Charged as if each were let in, so that one step does not give all seats to one client; and for those that
        # were let in by a step that is still on its way.
        counters = {client_id: self.counter(client_id) for client_id in queues}
        for request in running:
            if request.request_id in self._unserved and request.client_id in counters:
                counters[request.client_id] += self._prompt_weight * request.num_prompt_tokens
        let_in: list[RequestView] = []
        while queues and len(let_in) < num_seats:
            client_id = min(queues, key=lambda client_id: (counters[client_id], client_id))
            request = queues[client_id].popleft()
            let_in.append(request)
            if request.request_id in self._unserved:
                counters[client_id] += self._prompt_weight * request.num_prompt_tokens
            if not queues[client_id]:
                del queues[client_id]
        return [*running, *let_in]

    def on_arrival(self, request: RequestView, now_s: float) -> None:
        client_id = request.client_id
        if not self._num_waiting[client_id]:
            waiting = [other for other, count in self._num_waiting.items() if count]
            if waiting:
                least = min(self.counter(other) for other in waiting)
            else:
                least = 0.0 if self._last_to_leave is None else self.counter(self._last_to_leave)
            self._counters[client_id] = max(self.counter(client_id), least)
        self._num_waiting[client_id] += 1
        self._unserved.add(request.request_id)

    def on_served(self, served: Sequence[Served], now_s: float) -> None:
        for request, _, num_output_tokens in served:
            if request.request_id in self._unserved:
                self._leave(request)
            self._counters[request.client_id] += self._output_weight * num_output_tokens

    def on_finish(self, request: RequestView, now_s: float) -> None:
        if request.request_id in self._unserved:
            self._leave(request)

    def _leave(self, request: RequestView) -> None:
        """A request waits no longer: it was let in, and is charged its prompt, or it was given up."""
        self._unserved.remove(request.request_id)
        self._num_waiting[request.client_id] -= 1
        self._last_to_leave = request.client_id
        if request.first_scheduled_s is not None:
            self._counters[request.client_id] += self._prompt_weight * request.num_prompt_tokens
