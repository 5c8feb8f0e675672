"""Who is where: every request waits, runs, ends, or has ended and is handed over."""

from __future__ import annotations

from minivllm.blocks.tables import BlockTables
from minivllm.component import is_count, require
from minivllm.request import FinishReason, Request, RequestStatus
from minivllm.scheduler.base import SchedulingPolicy, overrides
from minivllm.scheduler.drafting import Drafting
from minivllm.scheduler.predictors.base import LengthPredictor
from minivllm.scheduler.swapping import Swapping
from minivllm.scheduler.waiting import WaitingQueue


class Queues:
    """The requests of one scheduler.

    Args:
        policy: hears of arrivals and ends.
        tables: block tables of running requests.
        swapping: forgets who ended.
        predictor: of output lengths; None leaves what a request came with.
        drafting: forgets who ended; None where nothing is speculated.
    """

    def __init__(
        self,
        policy: SchedulingPolicy,
        tables: BlockTables,
        swapping: Swapping,
        predictor: LengthPredictor | None = None,
        drafting: Drafting | None = None,
    ) -> None:
        self.running: list[Request] = []
        self.waiting = WaitingQueue(policy)
        # All that have not ended.
        self.requests: dict[int, Request] = {}
        self.num_preemptions = 0
        self.num_recomputed_tokens = 0
        self._policy, self._tables, self._predictor, self._drafting = policy, tables, predictor, drafting
        self._swapping = swapping
        self._hears_arrivals, self._hears_ends = overrides(policy, "on_arrival"), overrides(policy, "on_finish")
        self._finished: list[Request] = []
        # Rows that the runner may drop, told with the next plan.
        self._released: list[int] = []
        # Requests whose K/V was forgotten, and is not all computed again: how far each had got.
        self._lost: dict[int, int] = {}

    def add(self, request: Request) -> None:
        self.requests[request.request_id] = request
        self._predict(request)
        if self._hears_arrivals:
            self._policy.on_arrival(request, request.arrival_s)
        self.waiting.add(request, request.arrival_s)

    def refine_predictions(self) -> None:
        """Ask again how long the running ones will be, where the predictor learns from what they said."""
        if self._predictor is not None and self._predictor.refines:
            for request in self.running:
                self._predict(request)

    def _predict(self, request: Request) -> None:
        if self._predictor is None or request.has_known_length:
            return
        said = self._predictor.predict(request)
        name = type(self._predictor).__name__
        require(is_count(said), f"length_predictor={name}: request {request.request_id}", said, "1 or more tokens")
        request.predicted_output_tokens = said

    def admit(self, request: Request, num_computed_tokens: int, now_s: float) -> None:
        """A waiting request runs; the K/V of its first tokens is there."""
        self.waiting.remove(request)
        self.running.append(request)
        request.status = RequestStatus.RUNNING
        request.num_computed_tokens = num_computed_tokens
        if request.first_scheduled_s is None:
            request.first_scheduled_s = now_s
        if len(request.resumed_at_s) < len(request.preempted_at_s):
            request.resumed_at_s.append(now_s)

    def preempt(self, request: Request, now_s: float, *, is_swapped: bool) -> None:
        """A running request gives its blocks back and waits, its tokens kept, and its K/V where it is swapped out."""
        self.leave(request)
        if not is_swapped:
            self.lose(request)
        request.preempted_at_s.append(now_s)
        request.num_preemptions += 1
        self.num_preemptions += 1
        request.status = RequestStatus.WAITING
        self.waiting.add(request, now_s)

    def end(self, request: Request) -> None:
        """A running request has run its last token, whose value is still to come. Its blocks can serve others: what is
        launched runs before what will be."""
        self.leave(request)
        request.status = RequestStatus.ENDING

    def leave(self, request: Request) -> None:
        """Nothing is held any more."""
        self.running.remove(request)
        self._tables.close(request.request_id)
        self._released.append(request.request_id)

    def finish(self, request: Request, reason: FinishReason, now_s: float, error: str | None = None) -> None:
        if request.status is RequestStatus.RUNNING:
            self.leave(request)
        elif request.status is RequestStatus.WAITING:
            self.waiting.remove(request)
        del self.requests[request.request_id]
        request.drop_pending_token()
        self._lost.pop(request.request_id, None)
        self._tables.forget(request.request_id)
        self._swapping.forget(request.request_id)
        if self._drafting is not None:
            self._drafting.forget(request.request_id)
        request.status = RequestStatus.FINISHED
        request.finish_reason = reason
        request.finish_s = now_s
        request.error = error
        self._finished.append(request)
        if self._predictor is not None:
            self._predictor.on_finish(request)
        if self._hears_ends:
            self._policy.on_finish(request, now_s)

    def finished(self, request_id: int) -> Request | None:
        """One that ended and was not handed over yet."""
        return next((request for request in self._finished if request.request_id == request_id), None)

    def take_finished(self) -> list[Request]:
        taken, self._finished = self._finished, []
        return taken

    def take_released(self) -> tuple[int, ...]:
        taken, self._released = tuple(self._released), []
        return taken

    def lose(self, request: Request) -> None:
        """All of its K/V is gone."""
        # Further than this where it was lost before, and is not there again.
        self._lost[request.request_id] = max(request.num_computed_tokens, self._lost.get(request.request_id, 0))
        request.num_computed_tokens = 0

    def computed(self, request: Request, end: int) -> None:
        """K/V of positions up to `end` is there; what was there before and was lost is counted."""
        if self._lost:
            reached = self._lost.get(request.request_id)
            if reached is not None:
                again = max(0, min(end, reached) - request.num_computed_tokens)
                request.num_recomputed_tokens += again
                self.num_recomputed_tokens += again
                if end >= reached:
                    del self._lost[request.request_id]
        request.num_computed_tokens = end
        self._tables.publish(request)

    def check(self) -> None:
        """Assert every invariant of queues, tables and pool."""
        self._tables.check()
        self._swapping.check(self.requests)
        self.waiting.check()
        running = {request.request_id for request in self.running}
        waiting = {request.request_id for request in self.waiting}
        assert len(running) == len(self.running)
        assert not running & waiting
        ending = {i for i, request in self.requests.items() if request.status is RequestStatus.ENDING}
        assert not ending & (running | waiting)
        assert running | waiting | ending == set(self.requests), "a request is lost"
        for request in self.requests.values():
            assert (request.request_id in running) == self._tables.holds(request.request_id)
            assert 0 <= request.num_computed_tokens < request.num_tokens
            assert request.num_tokens - len(request.token_ids) in (0, 1)
            assert request.request_id not in ending or request.has_pending_token
            if request.request_id in running:
                held = len(self._tables.table(request.request_id)) * self._tables.block_size
                assert request.num_computed_tokens <= held
        if not self.requests:
            assert self._tables.pool.num_used == 0, "blocks are in use, but no request is"
