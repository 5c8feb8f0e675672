"""A pass of a model over a packed batch: the whole of it, or the layers that drafting has left."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import numpy as np
from torch import Tensor

from minivllm.attention.base import AttentionBackend, PackedBatch
from minivllm.models.llama import Attend, Llama
from minivllm.speculation.model import Resume
from minivllm.transfer import upload


def attend_of(attention: AttentionBackend, batch: PackedBatch) -> Attend:
    """Rotation, K/V write and attention of one batch."""
    return attend_with(attention, attention.prepare(batch))


def attend_with(attention: Any, metadata: Any) -> Attend:
    """As `attend_of`, of a batch that is prepared: the first two in one pass where backend and rotation can."""
    can_attend_written = hasattr(attention, "attend_written")

    def attend(qkv: Tensor, layer: int, rotary: Any, at: Any) -> Tensor:
        if can_attend_written and hasattr(rotary, "rotate_and_write_"):
            rotary.rotate_and_write_(qkv, at, attention.layers[layer], metadata.slot_mapping)
            return cast(Tensor, attention.attend_written(qkv, layer, metadata))
        rotary.rotate_(qkv, at)
        return cast(Tensor, attention.attend(qkv, layer, metadata))

    return attend


def resume_forward(
    model: Llama, attention: AttentionBackend, batch: PackedBatch, resume: Resume, num_drafts: np.ndarray
) -> Tensor:
    """Hidden states after the final norm, [N, C], of a batch of which drafting has computed a part.

    Args:
        model, attention: the target's.
        batch: R chunks, drafts included.
        resume: the part, one row a chunk with drafts: its newest token, and all of its drafts but the last.
        num_drafts: [R] int64, drafts behind each chunk.
    """
    lens = np.diff(batch.cu_seqlens_q).astype(np.int64)
    # Of a chunk with n drafts its first n tokens are done.
    left = lens - num_drafts
    device = batch.token_ids.device
    starts = batch.cu_seqlens_q[:-1].astype(np.int64)
    rest = upload(_ranges(starts + num_drafts, left), device)
    done = upload(_ranges(starts, num_drafts), device)
    chains = np.flatnonzero(num_drafts)
    width = resume.residual.shape[1]
    kept = upload(_ranges(np.arange(len(chains)) * width, num_drafts[chains]), device)

    rest_batch = dataclasses.replace(
        batch,
        token_ids=batch.token_ids.index_select(0, rest),
        positions=batch.positions.index_select(0, rest),
        slot_mapping=batch.slot_mapping.index_select(0, rest),
        cu_seqlens_q=np.concatenate([[0], np.cumsum(left)]).astype(np.int32),
    )
    rest_residual = model.embed(rest_batch.token_ids)
    model.run_layers(rest_residual, rest_batch.positions, attend_of(attention, rest_batch), 0, resume.num_layers)
    residual = rest_residual.new_empty(len(batch.token_ids), rest_residual.shape[1])
    residual.index_copy_(0, rest, rest_residual)
    residual.index_copy_(0, done, resume.residual.flatten(0, 1).index_select(0, kept))
    return model.run_layers(residual, batch.positions, attend_of(attention, batch), resume.num_layers)


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[sum(counts)] int64: `counts[i]` numbers from `starts[i]` on, one range after the other."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - ends + counts, counts)
