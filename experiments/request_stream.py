"""Requests that ended, made into rows of `requests` and columns of `runs` as they come.

They are taken in blocks, and a block is turned into columns at once: nothing is kept of it but sums, sketches, and what
each client got. Rows are in order of request id within a block, and a small run is one block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import chain, zip_longest
from operator import attrgetter
from typing import Any

import numpy as np

from experiments.fairness import Shares
from experiments.fluidity import fluidity_fractions
from experiments.metrics import acceptance, ratio
from experiments.points import Slo
from experiments.sketch import Sketch, summary
from experiments.streams import TableStream
from minivllm.request import FinishReason, Request, Speculated

# A block is full at either: some ten megabytes.
TOKENS_AT_ONCE = 500_000
REQUESTS_AT_ONCE = 20_000
# Of the request itself, in the order in which they are read.
_READ = (
    *("request_id", "client_id", "priority", "arrival_s", "first_scheduled_s", "first_token_s", "finish_s"),
    *("num_prompt_tokens", "num_tokens", "predicted_output_tokens", "num_cached_tokens", "num_preemptions"),
    *("num_recomputed_tokens", "finish_reason", "token_times_s"),
)
_read = attrgetter(*_READ)
_DONE = (FinishReason.STOP, FinishReason.LENGTH)


class RequestStream:
    """Args:
    rows: where rows go; None keeps none.
    slo: the limits.
    origin_s: the instant that times count from.
    speculates: whether the engine drafts.
    hashes: whether tokens mean something, so that rows have their hashes.
    """

    def __init__(
        self,
        rows: TableStream | None,
        slo: Slo,
        *,
        origin_s: float,
        speculates: bool = False,
        hashes: bool = True,
    ) -> None:
        self._rows, self._slo, self._origin_s = rows, slo, origin_s
        self._speculates, self._hashes = speculates, hashes
        self._block: list[tuple[Request, float | None]] = []
        self._num_block_tokens = 0
        self.num_requests = self._num_done = self._num_met = 0
        self._num_prompt = self._num_output = self._num_cached = 0
        self._last_finish_s = 0.0
        self._waiting_s = self._fluidity = 0.0
        self._num_fluid = 0
        self._latencies = {what: Sketch() for what in ("ttft", "tpot", "itl", "e2e", "queue")}
        self._lateness = Sketch()
        self._speculated = Speculated()
        self._shares = Shares()
        # (request id, its error) of the first that failed, and how many did.
        self.first_error: tuple[int, str | None] | None = None
        self.num_errors = 0

    def add(self, request: Request, lateness_s: float | None) -> None:
        """A request that ended."""
        self._block.append((request, lateness_s))
        self._num_block_tokens += request.num_tokens
        if self._num_block_tokens >= TOKENS_AT_ONCE or len(self._block) >= REQUESTS_AT_ONCE:
            self.flush()

    def write_warmup(self, requests: Sequence[Request]) -> None:
        """Rows of requests that count for nothing."""
        block: list[tuple[Request, float | None]] = [(request, None) for request in requests]
        if self._rows is not None and block:
            self._rows.write(self._columns(block, warmup=True)[0], len(block))

    def flush(self) -> None:
        """Take what has come."""
        if not self._block:
            return
        block, self._block, self._num_block_tokens = self._block, [], 0
        columns, gaps_s = self._columns(block, warmup=False)
        self._count(block, columns, gaps_s)
        if self._rows is not None:
            self._rows.write(columns, len(block))

    def _columns(self, block: list[tuple[Request, float | None]], *, warmup: bool) -> tuple[dict[str, Any], np.ndarray]:
        """Rows of `requests`, and all gaps between tokens. Sorts the block."""
        slo, origin_s = self._slo, self._origin_s
        block.sort(key=lambda pair: pair[0].request_id)
        requests = [request for request, _ in block]
        read = dict(zip(_READ, zip(*map(_read, requests), strict=True), strict=True))
        arrival_s = np.array(read["arrival_s"])
        scheduled_s, first_s, finish_s = (
            np.array(read[name], dtype=np.float64) for name in ("first_scheduled_s", "first_token_s", "finish_s")
        )
        num_prompt, num_tokens = np.array(read["num_prompt_tokens"]), np.array(read["num_tokens"])
        num_output = num_tokens - num_prompt
        reasons = read["finish_reason"]
        ttft_s = first_s - arrival_s
        tpot_s = np.where(num_output > 1, (finish_s - first_s) / np.maximum(num_output - 1, 1), np.nan)

        counts = np.array([len(times) for times in read["token_times_s"]])
        times_s = np.fromiter(chain.from_iterable(read["token_times_s"]), np.float64, int(counts.sum()))
        gaps_s, itl_max_s = _gaps(times_s, counts)
        preempted_from, preempted_until, preempted_s = _preempted(requests, origin_s)
        columns: dict[str, Any] = {
            "request_id": read["request_id"],
            "warmup": [warmup] * len(requests),
            "client_id": read["client_id"],
            "priority": read["priority"],
            "arrival_s": arrival_s - origin_s,
            "arrival_lateness_s": np.array([lateness_s for _, lateness_s in block], dtype=np.float64),
            "first_scheduled_s": scheduled_s - origin_s,
            "first_token_s": first_s - origin_s,
            "finish_s": finish_s - origin_s,
            "ttft_s": ttft_s,
            "tpot_s": tpot_s,
            "e2e_s": finish_s - arrival_s,
            "queue_s": scheduled_s - arrival_s,
            "itl_max_s": itl_max_s,
            "num_prompt_tokens": num_prompt,
            "num_output_tokens": num_output,
            "predicted_output_tokens": read["predicted_output_tokens"],
            "num_cached_tokens": np.array(read["num_cached_tokens"]),
            "num_preemptions": read["num_preemptions"],
            "num_recomputed_tokens": read["num_recomputed_tokens"],
            "preempted_from_s": preempted_from,
            "preempted_until_s": preempted_until,
            "preempted_s": preempted_s,
            "finish_reason": [None if reason is None else reason.value for reason in reasons],
        }
        if slo.given:
            met = np.array([reason in _DONE for reason in reasons]) & ~np.isnan(first_s)
            if slo.ttft_s is not None:
                met &= ~(ttft_s > slo.ttft_s)
            if slo.tpot_s is not None:
                # A single token has no time between tokens to be late with.
                met &= ~(tpot_s > slo.tpot_s)
            columns["slo_met"] = met
            columns["fluidity_fraction"] = fluidity_fractions(times_s, counts, arrival_s, slo)
        if self._hashes:
            columns["prompt_sha256"] = [_sha256(r.token_ids[: r.num_prompt_tokens]) for r in requests]
            columns["output_sha256"] = [_sha256(r.output_token_ids) for r in requests]
        if self._speculates and not warmup:
            accepted = [acceptance([request.speculated]) for request in requests]
            columns |= {name: [one[name] for one in accepted] for name in accepted[0]}
        return columns, gaps_s

    def _count(self, block: list[tuple[Request, float | None]], columns: dict[str, Any], gaps_s: np.ndarray) -> None:
        self.num_requests += len(block)
        self._num_prompt += int(columns["num_prompt_tokens"].sum())
        self._num_output += int(columns["num_output_tokens"].sum())
        self._num_cached += int(columns["num_cached_tokens"].sum())
        self._num_done += sum(reason in ("stop", "length") for reason in columns["finish_reason"])
        self._last_finish_s = max(self._last_finish_s, float(np.nanmax(columns["finish_s"])))
        for what, sketch in self._latencies.items():
            sketch.add(gaps_s if what == "itl" else columns[f"{what}_s"])
        self._lateness.add(columns["arrival_lateness_s"])
        # Whoever was never scheduled waited until its end.
        queue_s = np.where(np.isnan(columns["queue_s"]), columns["e2e_s"], columns["queue_s"])
        self._waiting_s += float(queue_s.sum())
        self._waiting_s += float(columns["preempted_s"].sum())
        if self._slo.given:
            self._num_met += int(columns["slo_met"].sum())
            fluid = columns["fluidity_fraction"]
            self._fluidity += float(np.nansum(fluid))
            self._num_fluid += int((~np.isnan(fluid)).sum())
        self._shares.add(
            columns["client_id"],
            columns["num_prompt_tokens"] - columns["num_cached_tokens"],
            columns["num_output_tokens"],
            columns["arrival_s"],
            columns["finish_s"],
        )
        for request, _ in block:
            if request.finish_reason is FinishReason.ERROR:
                self.num_errors += 1
                self.first_error = self.first_error or (request.request_id, request.error)
            if self._speculates:
                _merge(self._speculated, request.speculated)

    def run_columns(self, *, num_offered: int, last_due_s: float | None) -> dict[str, Any]:
        """Columns of `runs`.

        Args:
            num_offered: requests that the workload asked for.
            last_due_s: due time of the last of an open loop, from the origin.
        """
        self.flush()
        slo, duration_s = self._slo, self._last_finish_s
        columns: dict[str, Any] = {
            "num_requests": self.num_requests,
            "num_prompt_tokens": self._num_prompt,
            "num_output_tokens": self._num_output,
            "duration_s": duration_s,
            "request_throughput_rps": ratio(self._num_done, duration_s),
            "output_throughput_tps": ratio(self._num_output, duration_s),
            "total_throughput_tps": ratio(self._num_prompt + self._num_output, duration_s),
            "goodput_rps": ratio(self._num_met, duration_s) if slo.given else None,
            "slo_attainment_fraction": ratio(self._num_met, num_offered) if slo.given else None,
            "offered_rate_rps": None if last_due_s is None else ratio(num_offered, last_due_s),
            "arrival_lateness_p99_s": self._lateness.percentiles((99,))[0],
            "num_waiting_mean": ratio(self._waiting_s, duration_s),
            "jain_fairness_fraction": self._shares.jain(),
            "fluidity_mean_fraction": ratio(self._fluidity, self._num_fluid),
            "prefix_hit_fraction": ratio(self._num_cached, self._num_prompt),
        }
        for what, sketch in self._latencies.items():
            columns |= summary(what, sketch)
        if self._speculates:
            columns |= acceptance([self._speculated])
        return columns


def _gaps(times_s: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All gaps between tokens of one request, and the longest of each; NaN where it has none."""
    longest = np.full(len(counts), np.nan)
    if times_s.size < 2:
        return np.empty(0), longest
    gaps_s = np.diff(times_s)
    inside = np.ones(gaps_s.size, dtype=bool)
    # Between the last token of one request and the first of the next.
    borders = np.cumsum(counts)[:-1] - 1
    inside[borders[(borders >= 0) & (borders < gaps_s.size)]] = False
    gaps_s = gaps_s[inside]
    several = counts > 1
    if several.any():
        firsts = np.cumsum(counts[several] - 1) - (counts[several] - 1)
        longest[several] = np.maximum.reduceat(gaps_s, firsts)
    return gaps_s, longest


def _preempted(requests: Sequence[Request], origin_s: float) -> tuple[list[list[float]], list[list[float]], np.ndarray]:
    """Beginnings and ends of the intervals in which each waited after a preemption, and their sums. One that ended
    while it waited did so until then."""
    since: list[list[float]] = [[]] * len(requests)
    until: list[list[float]] = [[]] * len(requests)
    sums = np.zeros(len(requests))
    for i, request in enumerate(requests):
        begins, ends = request.preempted_at_s, request.resumed_at_s
        if not begins:
            continue
        if len(ends) < len(begins):
            assert request.finish_s is not None
            ends = [*ends, request.finish_s]
        since[i] = [at_s - origin_s for at_s in begins]
        until[i] = [at_s - origin_s for at_s in ends]
        sums[i] = sum(b - a for a, b in zip(begins, ends, strict=True))
    return since, until, sums


def _merge(total: Speculated, one: Speculated) -> None:
    total.num_verifications += one.num_verifications
    total.num_draft_tokens += one.num_draft_tokens
    total.num_accepted_tokens += one.num_accepted_tokens
    for name in ("proposed", "evaluated", "accepted"):
        counts = zip_longest(getattr(total, name), getattr(one, name), fillvalue=0)
        setattr(total, name, [sum(pair) for pair in counts])


def _sha256(token_ids: Sequence[int]) -> str:
    return hashlib.sha256(np.asarray(token_ids, dtype="<i8").tobytes()).hexdigest()
