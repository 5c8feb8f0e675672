"""What clients get, and how far apart they are (VTC, arXiv 2401.00588, sections 3 and 4).

Service is counted in weighted tokens: one for each token of a prompt that was computed, two for each token of output.
What a prefix cache gave was not computed, and what is computed again after a preemption was given before: neither
counts.

A client is backlogged while one of its requests waits for a seat, for the first time or after a preemption. The
service gap of two clients over an interval in which both are backlogged all the time is the difference of what they
received in it; `service_gap_max_tokens` is the largest over all pairs and all such intervals. It is looked at after
every step, and a step counts as backlogged where somebody waits while it runs. Of more than 64 clients the first 64 to
come are looked at.

Jain's index is over the rates of service of all clients: what each received, over the time from its first arrival to
its last end: 1 where all rates are the same, 1/n where one client has everything. Rates differ by demand too, so that
it says something about the policy only where all clients ask for more than they get.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minivllm.engine import Engine
from minivllm.plan import Chunk, StepPlan, StepReport
from minivllm.request import Request, RequestStatus

PROMPT_WEIGHT, OUTPUT_WEIGHT = 1, 2
MAX_CLIENTS = 64


class Shares:
    """What each client received in all, and when."""

    def __init__(self) -> None:
        # Client -> service, first arrival, last end.
        self._clients: dict[int, list[float]] = {}

    def add(
        self,
        client_ids: Sequence[int],
        num_prompt: np.ndarray,
        num_output: np.ndarray,
        arrivals_s: np.ndarray,
        finishes_s: np.ndarray,
    ) -> None:
        """Requests that ended: the tokens of their prompts that were computed, and their output; [n] each."""
        ids, places = np.unique(np.asarray(client_ids), return_inverse=True)
        service = np.bincount(places, weights=PROMPT_WEIGHT * num_prompt + OUTPUT_WEIGHT * num_output)
        first_s, last_s = np.full(len(ids), np.inf), np.full(len(ids), -np.inf)
        np.minimum.at(first_s, places, arrivals_s)
        np.maximum.at(last_s, places, finishes_s)
        for client, got, since_s, until_s in zip(ids.tolist(), service, first_s, last_s, strict=True):
            known = self._clients.setdefault(client, [0.0, np.inf, -np.inf])
            known[0] += got
            known[1] = min(known[1], since_s)
            known[2] = max(known[2], until_s)

    def jain(self) -> float | None:
        """None for a single client."""
        if len(self._clients) < 2:
            return None
        rates = np.array([got / (until - since) for got, since, until in self._clients.values() if until > since])
        squares = len(rates) * float((rates**2).sum())
        return float(rates.sum()) ** 2 / squares if squares else None


class ServiceGap:
    """The largest service gap, followed step by step.

    It costs nothing while there is one client.

    Args:
        engine: whose requests are looked at.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # Client -> its place in the arrays below.
        self._places: dict[int, int] = {}
        # Request id -> itself and the place of its client, of all that are on their way.
        self._requests: dict[int, tuple[Request, int]] = {}
        self._following = False
        self._running: set[int] = set()
        # By place.
        self._num_waiting: list[int] = []
        # Request id -> how much of its prompt was computed or cached, while that is not all.
        self._reached: dict[int, int] = {}
        self._service = np.zeros(MAX_CLIENTS)
        self._low = np.zeros((MAX_CLIENTS, MAX_CLIENTS))
        self._high = np.zeros((MAX_CLIENTS, MAX_CLIENTS))
        self._joint = np.zeros((MAX_CLIENTS, MAX_CLIENTS), dtype=bool)
        self._any_joint = False
        self._largest = 0.0

    def on_sent(self, request_ids: Sequence[int], client_id: int) -> None:
        place = self._places.get(client_id)
        if place is None:
            if len(self._places) == MAX_CLIENTS:
                return
            place = self._places[client_id] = len(self._places)
            self._num_waiting.append(0)
        for request_id in request_ids:
            request = self._engine.request(request_id)
            assert request is not None
            self._requests[request_id] = request, place
        if self._following:
            self._num_waiting[place] += len(request_ids)
        elif len(self._places) == 2:
            self._follow()

    def _follow(self) -> None:
        """Begin, with the requests that there are."""
        self._following = True
        for request_id, (request, place) in self._requests.items():
            if request.status is RequestStatus.WAITING:
                self._num_waiting[place] += 1
                continue
            self._running.add(request_id)
            if request.num_computed_tokens < request.num_prompt_tokens:
                self._reached[request_id] = request.num_computed_tokens

    def on_finish(self, request: Request) -> None:
        request_id = request.request_id
        found = self._requests.pop(request_id, None)
        if found is None or not self._following:
            return
        if request_id in self._running:
            self._running.discard(request_id)
        else:
            self._num_waiting[found[1]] -= 1
        self._reached.pop(request_id, None)

    def on_step(self, plan: StepPlan, report: StepReport) -> None:
        """A step is over; the requests that it ended are told of later.

        Args:
            plan: that was launched.
            report: of the step.
        """
        if not self._following:
            return
        if report.num_preemptions:
            self._look_for_preempted()
        got = [0] * len(self._places)
        if not self._running.issuperset(plan.decodes):
            # They come back with all that they had.
            for request_id in set(plan.decodes) - self._running:
                self._admit(request_id)
        # The last token of a prompt, alone in its step.
        for request_id in self._reached.keys() & plan.decodes if self._reached else ():
            got[self._requests[request_id][1]] += PROMPT_WEIGHT
            del self._reached[request_id]
        for chunk in plan.others:
            request_id = chunk.request_id
            if request_id in self._running and request_id not in self._reached:
                continue
            if request_id in self._requests:
                got[self._requests[request_id][1]] += PROMPT_WEIGHT * self._computed(chunk)
        for request_id, token_ids in report.emitted:
            if request_id in self._requests:
                got[self._requests[request_id][1]] += OUTPUT_WEIGHT * len(token_ids)
        self._count(np.array(got), np.array(self._num_waiting) > 0)

    def _admit(self, request_id: int) -> None:
        if request_id in self._requests:
            self._running.add(request_id)
            self._num_waiting[self._requests[request_id][1]] -= 1

    def _computed(self, chunk: Chunk) -> int:
        """New tokens of a prompt; lets a request in that did not run."""
        request_id = chunk.request_id
        request = self._requests[request_id][0]
        if request_id not in self._running:
            self._admit(request_id)
            if not request.num_preemptions:
                # What it finds in a cache is no service; when it comes again, it finds its own work.
                self._reached[request_id] = chunk.start
        if request_id not in self._reached:
            return 0
        end = min(chunk.start + chunk.num_tokens, request.num_prompt_tokens)
        new = max(0, end - self._reached[request_id])
        self._reached[request_id] += new
        if end == request.num_prompt_tokens:
            del self._reached[request_id]
        return new

    def _look_for_preempted(self) -> None:
        for request_id in list(self._running):
            request, place = self._requests[request_id]
            if request.status is RequestStatus.WAITING:
                self._running.discard(request_id)
                self._num_waiting[place] += 1

    def _count(self, got: np.ndarray, backlogged: np.ndarray) -> None:
        n = len(got)
        if backlogged.sum() < 2:
            if self._any_joint:
                self._joint[:] = False
                self._any_joint = False
            self._service[:n] += got
            return
        low, high, joint = self._low[:n, :n], self._high[:n, :n], self._joint[:n, :n]
        now_joint = np.logical_and.outer(backlogged, backlogged)
        before = np.subtract.outer(self._service[:n], self._service[:n])
        self._service[:n] += got
        after = np.subtract.outer(self._service[:n], self._service[:n])
        # An interval that begins with this step begins where the clients stood before it.
        np.copyto(low, before, where=~joint)
        np.copyto(high, before, where=~joint)
        np.minimum(low, after, out=low)
        np.maximum(high, after, out=high)
        joint[:] = now_joint
        self._any_joint = True
        self._largest = max(self._largest, float(((high - low) * now_joint).max()))

    @property
    def largest_tokens(self) -> float | None:
        """None for a single client."""
        return self._largest if self._following else None
