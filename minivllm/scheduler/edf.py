"""Earliest deadline first (Liu and Layland, JACM 1973) over the deadlines of tokens: the first is due `ttft_s` after
arrival and each later one `tpot_s` after the one before was due, so that whoever is ahead of its reader can wait
(Andes, arXiv 2404.16283; the deadlines of etalon's fluidity, arXiv 2407.07000)."""

from __future__ import annotations

from minivllm.component import is_count, require
from minivllm.request import RequestView
from minivllm.scheduler.base import KeyChanges, SchedulingPolicy


class EarliestDeadline(SchedulingPolicy):
    """Serve the request whose next token is due first; it takes the seat of whoever has the most time. Past saturation
    everybody is late, and the order is that of who is latest.

    Args:
        ttft_s: from arrival to the deadline of the first token.
        tpot_s: from one deadline to the next.
        tokens_per_turn: tokens that share the deadline of the first of them, so that equally urgent requests take turns
            of so many tokens; with 1 they put each other out at every token, and pay with their K/V.
    """

    preemptive = True
    key_changes = KeyChanges.WHEN_SERVED

    def __init__(self, ttft_s: float = 0.45, tpot_s: float = 0.04, tokens_per_turn: int = 16) -> None:
        for name, value in (("ttft_s", ttft_s), ("tpot_s", tpot_s)):
            valid = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
            require(
                valid, f"scheduler.{name}", value, "above 0: set it, or an SLO that has it, such as slo=interactive"
            )
        require(is_count(tokens_per_turn), "scheduler.tokens_per_turn", tokens_per_turn, "1 or more")
        self._ttft_s = ttft_s
        self._tpot_s = tpot_s
        self._tokens_per_turn = tokens_per_turn

    def key(self, request: RequestView, now_s: float) -> tuple[float, ...]:
        num_before = request.num_output_tokens // self._tokens_per_turn * self._tokens_per_turn
        due_s = request.arrival_s + self._ttft_s + num_before * self._tpot_s
        return (due_s, request.arrival_s, request.request_id)
