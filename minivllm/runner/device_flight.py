"""A step on its way: what to wait for, whose tokens they are, and what becomes of drafts when they are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minivllm.clock import Clock
from minivllm.plan import Chunk, SampledTokens, StepResult
from minivllm.runner.device_drafts import DeviceDrafts
from minivllm.runner.drafting import StepDrafts
from minivllm.transfer import download, upload
from minivllm_kernels.sample.kernel import logprobs


class Marks:
    """Moments of a step: events where a GPU works beside the host, else times.

    Args:
        on_gpu: which.
        clock: for times.
    """

    def __init__(self, on_gpu: bool, clock: Clock) -> None:
        self.on_gpu = on_gpu
        self._clock = clock

    def now(self) -> Any:
        if not self.on_gpu:
            return self._clock.now_s()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self, mark: Any) -> None:
        if self.on_gpu:
            mark.synchronize()

    def between_s(self, begun: Any, ended: Any) -> float:
        """Of two moments that are over."""
        return float(begun.elapsed_time(ended) / 1000 if self.on_gpu else ended - begun)


@dataclass(frozen=True, kw_only=True, slots=True)
class Times:
    """When the step began to draft, had its drafts, had its inputs, and ended. The device is busy before the drafts
    only where it is what drafts."""

    marks: Marks
    started: Any
    drafted: Any
    begun: Any
    ended: Any

    def device_s(self, device_drafts: bool) -> float | None:
        if not self.marks.on_gpu:
            return None
        busy = self.marks.between_s(self.begun, self.ended)
        return busy + self.marks.between_s(self.started, self.drafted) if device_drafts else busy


@dataclass(frozen=True, kw_only=True, slots=True)
class Flight:
    """A step of R chunks, S of which sample from M rows of logits.

    Args:
        order: requests that sample, in the plan's order.
        num_decodes: the first of them, and of the chunks, are plain decodes.
        chunks: R, in the order of the step.
        rows: [R], their rows.
        drafts: None where there are none.
        speculation: None where it is off.
        sampled: on the host, [M] int64 and then the drafts that only the device knew; -1 where logits were no numbers.
        logprobs: None where nobody asked.
        times: of the step.
        failed: makes the answer to a chunk whose logits are no numbers.
        num_compilations: called when the step is over.
    """

    order: list[int]
    num_decodes: int
    chunks: Sequence[Chunk]
    rows: np.ndarray
    drafts: StepDrafts | None
    speculation: DeviceDrafts | None
    sampled: Tensor
    logprobs: Logprobs | None
    times: Times
    failed: Callable[[Chunk], SampledTokens]
    num_compilations: Callable[[], int]

    @torch.inference_mode()
    def wait(self) -> StepResult:
        marks, times = self.times.marks, self.times
        marks.wait(times.ended)
        values = self.sampled.tolist()
        drafts = self._known_drafts(values)
        told = {} if self.logprobs is None else self.logprobs.of_rows()
        by_request: dict[int, SampledTokens] = {}
        kept = []
        decoded: tuple[int, ...] | None = None
        end = 0
        if self.speculation is None and self.logprobs is None and min(values[: self.num_decodes], default=0) >= 0:
            end = self.num_decodes
            decoded = tuple(values[:end])
        for i, chunk in enumerate(self.chunks[end:], start=end):
            if not chunk.samples:
                continue
            num_drafts, first = 0 if drafts is None else int(drafts.counts[i]), end
            end = first + 1 + num_drafts
            nodes = drafts.accepted(i, values[first:end]) if drafts is not None and num_drafts else []
            reached = [first, *(first + 1 + node for node in nodes)]
            token_ids = [values[at] for at in reached]
            if min(token_ids) < 0:
                if self.speculation is not None:
                    self.speculation.scrub(int(self.rows[i]))
                by_request[chunk.request_id] = self.failed(chunk)
                continue
            if drafts is not None and drafts.tree is not None:
                kept.append((int(self.rows[i]), chunk.start + chunk.num_tokens, nodes, token_ids))
            by_request[chunk.request_id] = SampledTokens(
                request_id=chunk.request_id,
                token_ids=tuple(token_ids),
                logprobs=tuple(told[at] for at in reached) if first in told else (),
                num_draft_tokens=num_drafts,
                draft_depth=0 if drafts is None else drafts.depth_of_chunk(i),
            )
        if self.speculation is not None:
            if kept:
                self.speculation.keep(kept)
            ends = {chunk.request_id: chunk.start + chunk.num_tokens for chunk in self.chunks}
            for request_id in self.order:
                token_ids = list(by_request[request_id].token_ids)
                drafter = self.speculation.drafter
                drafter.extend(request_id, ends[request_id] + len(token_ids), token_ids)
        asked = any(chunk.num_draft_tokens for chunk in self.chunks)
        over = times.ended if marks.on_gpu else marks.now()
        return StepResult(
            samples=tuple(by_request[request_id] for request_id in self.order if request_id in by_request),
            decoded=decoded,
            device_s=times.device_s(drafts is not None and drafts.proposal is not None),
            draft_s=marks.between_s(times.started, times.drafted) if asked else None,
            verify_s=marks.between_s(times.drafted, over) if asked else None,
            num_compilations=self.num_compilations(),
        )

    def _known_drafts(self, values: list[int]) -> StepDrafts | None:
        drafts = self.drafts
        if drafts is None or drafts.token_ids is not None:
            return drafts
        assert self.speculation is not None and drafts.proposal is not None
        num_requests, width = drafts.proposal.token_ids.shape
        flat = values[len(values) - num_requests * width :]
        return drafts.told(self.speculation.drafter, [flat[i * width : (i + 1) * width] for i in range(num_requests)])


@dataclass(frozen=True, kw_only=True, slots=True)
class Logprobs:
    """Raw logprobs of the rows that asked for some, on their way to the host."""

    # (row of the step, how many likeliest)
    asked: list[tuple[int, int]]
    # [len(asked), 1 + most that any asked for]
    token_ids: Tensor
    values: Tensor

    @classmethod
    def start(cls, logits: Tensor | None, sampled: Tensor, asked: list[tuple[int, int]]) -> Logprobs | None:
        if not asked:
            return None
        assert logits is not None, "who asks for logprobs needs all"
        rows = upload(np.array([row for row, _ in asked], dtype=np.int64), logits.device)
        ids, values = logprobs(
            logits.index_select(0, rows),
            sampled.index_select(0, rows),
            num_likeliest=max(number for _, number in asked),
        )
        return cls(asked=asked, token_ids=download(ids), values=download(values))

    def of_rows(self) -> dict[int, dict[int, float]]:
        table = zip(self.asked, self.token_ids.tolist(), self.values.tolist(), strict=True)
        return {row: dict(zip(ids[: 1 + k], values[: 1 + k], strict=True)) for (row, k), ids, values in table}
