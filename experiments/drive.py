"""Send a workload to an engine and watch it.

A closed loop keeps `concurrency` requests on their way. An open loop sends each request when it is due, and counts
its latency from that moment: the client looks at the clock only between steps, and an engine that is late would
else hide its own queue (coordinated omission). How late the client was is kept beside.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from experiments.workloads.base import WorkloadItem
from minivllm.engine import Engine
from minivllm.plan import StepReport
from minivllm.request import Request
from minivllm.sampling_params import SamplingParams

# (requests done, output tokens so far, seconds since the start)
Watch = Callable[[int, int, float], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Driven:
    """What came of a workload. Times are on the engine's clock."""

    start_s: float
    end_s: float
    # In order of request id.
    requests: tuple[Request, ...]
    steps: tuple[StepReport, ...]
    # Seconds by which the client was late, by request id; only of requests that had a due time.
    lateness_s: dict[int, float]


def drive(
    engine: Engine,
    items: Sequence[WorkloadItem],
    sampling: SamplingParams,
    *,
    concurrency: int | None,
    watch: Watch | None = None,
) -> Driven:
    """Run all items to their end.

    Args:
        engine: with nothing on its way.
        items: in order of arrival.
        sampling: how tokens are chosen; `max_tokens` and `seed` are each item's own.
        concurrency: items on their way at once; None for a workload with due times.
        watch: called after each step.

    Raises:
        ValueError: the engine refuses a request.
    """
    clock = engine.clock
    start_s = clock.now_s()
    pending = deque(items)
    # Request id -> its item's ids that are not done; an item with n > 1 occupies its client until all are.
    open_ids: dict[int, set[int]] = {}
    num_open = num_tokens = 0
    requests: list[Request] = []
    steps: list[StepReport] = []
    lateness_s: dict[int, float] = {}

    def send(item: WorkloadItem) -> None:
        now_s = clock.now_s()
        due_s = now_s if item.arrival_s is None else start_s + item.arrival_s
        params = dataclasses.replace(sampling, max_tokens=item.max_tokens, seed=item.sampling_seed)
        ids = engine.add_request(list(item.prompt_token_ids), params, arrival_s=due_s, client_id=item.client_id)
        siblings = set(ids)
        open_ids.update((request_id, siblings) for request_id in ids)
        if item.arrival_s is not None:
            lateness_s.update((request_id, now_s - due_s) for request_id in ids)

    while pending or engine.has_unfinished:
        if concurrency is not None:
            while pending and num_open < concurrency:
                send(pending.popleft())
                num_open += 1
        else:
            while pending and start_s + (pending[0].arrival_s or 0.0) <= clock.now_s():
                send(pending.popleft())
            if not engine.has_unfinished:
                clock.sleep_until(start_s + (pending[0].arrival_s or 0.0))
                continue
        report = engine.step()
        steps.append(report)
        num_tokens += sum(len(tokens) for _, tokens in report.emitted)
        for request in engine.take_finished():
            requests.append(request)
            siblings = open_ids.pop(request.request_id)
            siblings.discard(request.request_id)
            num_open -= not siblings
        if watch is not None:
            watch(len(requests), num_tokens, clock.now_s() - start_s)
    requests.sort(key=lambda request: request.request_id)
    return Driven(
        start_s=start_s,
        end_s=clock.now_s(),
        requests=tuple(requests),
        steps=tuple(steps),
        lateness_s=lateness_s,
    )
