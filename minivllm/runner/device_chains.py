"""All drafts of a step from a model of its own as one launch: its passes follow each other on the device, each reads
the token that the one before stored.

In its first pass a request reads its newest token, and the last draft before it where all drafts stood: that one was
drafted and never read. In all others it reads the draft before.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minivllm.attention.triton_backend import TritonAttention
from minivllm.models.llama import Llama
from minivllm.runner.decode import DecodeStep
from minivllm.runner.device_rows import DeviceRows, Need
from minivllm.runner.graphs import Recorder
from minivllm.runner.verify_step import VerifyStep
from minivllm.speculation.base import DraftRequest
from minivllm.transfer import upload
from minivllm_kernels.sample.kernel import argmax

# What a request may not have read when it drafts.
MOST_UNREAD = 2


class ChainSteps:
    """The buffers of the widest batch, the computation on the first rows of them, and graphs of it.

    Args:
        model, attention: the drafter's.
        rows: the requests on the device.
        sizes: batch sizes that are padded to, ascending.
        counts: numbers of drafts that are padded to, ascending.
    """

    def __init__(
        self,
        model: Llama,
        attention: TritonAttention,
        rows: DeviceRows,
        sizes: Sequence[int],
        counts: Sequence[int],
    ) -> None:
        self._rows = rows
        self._sizes, self._counts = sizes, counts
        device, most = rows.tokens.device, sizes[-1]
        self._device = device
        self._first = VerifyStep(model, attention, rows, most, MOST_UNREAD - 1)
        self._next = DecodeStep(model, attention, rows, most)
        # Row, position of the newest token, tokens before it that are unread, and drafts that are wanted.
        self._inputs = torch.full((4, most), -1, dtype=torch.int32, device=device)
        self._firsts = torch.arange(most, device=device) * MOST_UNREAD
        # [K, R] of the widest
        self._drafts = torch.zeros((counts[-1], most), dtype=torch.int64, device=device)
        self._graphs: dict[tuple[int, int], Any] = {}

    def capture(self, recorder: Recorder) -> None:
        for count in reversed(self._counts):
            for size in reversed(self._sizes):
                captured = recorder.capture(partial(self._outputs, size, count), keep_logits=False)
                self._graphs[size, count] = captured.graph
        torch.cuda.synchronize()

    def run(self, requests: Sequence[DraftRequest], num_read: np.ndarray) -> Tensor:
        """Draft what is likeliest.

        Args:
            requests: R of them.
            num_read: [R], tokens that the model has read: all but one or two.

        Returns:
            [R, K] int64, drafts, which stand in the rows, too; what lies behind a request's number means nothing. Holds
            until the next call.
        """
        wanted = np.array([request.num_draft_tokens for request in requests])
        size = next(size for size in self._sizes if size >= len(requests))
        count = next(count for count in self._counts if count >= wanted.max())
        newest = np.array([request.num_tokens - 1 for request in requests])
        inputs = np.full((4, size), -1, dtype=np.int32)
        inputs[:, : len(requests)] = [request.row for request in requests], newest, newest - num_read, wanted
        self._inputs[:, :size].copy_(upload(inputs, self._device), non_blocking=True)
        if self._graphs:
            self._graphs[size, count].replay()
        else:
            self.compute(size, count)
        return self._drafts[:count, : len(requests)].t()

    def compute(self, size: int, count: int) -> Tensor:
        """[count, size] drafts of what was put into the inputs."""
        rows, newest, unread, wanted = (self._inputs[i, :size] for i in range(4))
        drafts = self._drafts[:count, :size]
        self._first.place(rows, newest - unread, unread)
        _, logits = self._first.compute(size, MOST_UNREAD - 1, None)
        argmax(logits.index_select(0, self._firsts[:size] + unread.clamp(min=0)), out_tokens=drafts[0])
        self._rows.keep(torch.stack([rows, newest + 1]), drafts[0])
        for offset in range(1, count):
            # Behind its last draft a row may end.
            self._next.place(torch.where(wanted > offset, rows, -1), newest + offset)
            sampled, _ = self._next.compute(size, Need.ARGMAX)
            drafts[offset].copy_(sampled)
        # A draft whose logits are no numbers is as good as any.
        return drafts.clamp_(min=0)

    def _outputs(self, size: int, count: int) -> tuple[Tensor, Tensor]:
        drafts = self.compute(size, count)
        return drafts, drafts
