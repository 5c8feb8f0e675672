"""Teacher forcing: a model is made to read a text, and every token's hidden state is kept, not only the last one's.

The text goes through what serves requests: the engine's attention backend, blocks of its K/V pool, chunks of at most
its token budget. So whatever is lossy in weights, activations or K/V shows. No request is involved: blocks are taken
from the pool and given back as they were, and the cached prefixes are dropped, so that taking them evicts nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from minivllm.attention.base import PackedBatch
from minivllm.runner.base import ReadingRunner
from minivllm.transfer import upload

if TYPE_CHECKING:
    from minivllm.engine import Engine


@torch.inference_mode()
def hidden_states(engine: Engine, token_ids: Sequence[int]) -> Tensor:
    """What the model makes of each token of a text, after the final norm.

    Args:
        engine: with nothing on its way.
        token_ids: N >= 1 ids, as long as a sequence of this engine may be.

    Returns:
        [N, C], in the dtype of the activations, on the engine's device.

    Raises:
        ValueError: the engine is busy or computes with no model; the text is empty, too long, or no text of this model.
    """
    runner, pool = _reading(engine), engine.scheduler.tables.pool
    size, num_tokens = engine.block_size, len(token_ids)
    num_blocks = -(-num_tokens // size)
    _check(engine, token_ids, num_blocks)
    pool.drop_cached()
    blocks = [pool.allocate() for _ in range(num_blocks)]
    try:
        ids, table = np.array(token_ids, dtype=np.int64), np.array(blocks, dtype=np.int32)
        limits = engine.config.scheduler
        step = limits.max_num_batched_tokens if limits.chunked_prefill else num_tokens
        parts = [
            runner.forward(_batch(ids, table, size, start, min(start + step, num_tokens), runner.parts.device))
            for start in range(0, num_tokens, step)
        ]
        hidden = parts[0] if len(parts) == 1 else torch.cat(parts)
        if not torch.isfinite(hidden).all():
            # Whoever gets these blocks next may read past its own keys, where a stray NaN would spoil it.
            held = torch.from_numpy(table).long().to(runner.parts.device)
            cache = runner.parts.kv_cache
            cache.index_copy_(1, held, cache.index_select(1, held).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0))
        return hidden
    finally:
        # The last one taken first: the pool is as it was.
        for block_id in reversed(blocks):
            pool.release(block_id)


@torch.inference_mode()
def logits(engine: Engine, hidden: Tensor) -> Tensor:
    """The engine's own head: [M, C] -> [M, V] float32, of the token after each."""
    scores: Tensor = _reading(engine).parts.model.compute_logits(hidden)
    return scores.float()


def _batch(
    token_ids: np.ndarray, table: np.ndarray, block_size: int, start: int, end: int, device: torch.device
) -> PackedBatch:
    """Tokens [start, end) of one text whose K/V lie in the blocks of `table`."""
    positions = np.arange(start, end)
    slots = table[positions // block_size].astype(np.int64) * block_size + positions % block_size
    return PackedBatch(
        token_ids=upload(token_ids[start:end], device),
        positions=upload(positions, device),
        slot_mapping=upload(slots, device),
        cu_seqlens_q=np.array([0, end - start], dtype=np.int32),
        context_lens=np.array([end], dtype=np.int64),
        block_table=table[None, : -(-end // block_size)],
        sample_indices=upload(np.empty(0, dtype=np.int64), device),
    )


def _reading(engine: Engine) -> ReadingRunner:
    runner = engine.runner
    if not isinstance(runner, ReadingRunner):
        raise ValueError(f"score: {type(runner).__name__} computes with no model: choose execution.device=cpu or cuda")
    return runner


def _check(engine: Engine, token_ids: Sequence[int], num_blocks: int) -> None:
    """Raise the one-line ValueError of a text that this engine cannot read, or not now."""
    if engine.has_unfinished:
        raise ValueError("score: the engine has unfinished requests: finish or abort them first")
    if not token_ids:
        raise ValueError("prompt_token_ids: is empty: give at least one token, such as the model's bos token")
    lowest, highest, vocab_size = min(token_ids), max(token_ids), engine.runner.vocab_size
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(f"prompt_token_ids: {wrong} is outside of the vocabulary [0, {vocab_size})")
    longest = engine.runner.max_model_len
    if len(token_ids) > longest:
        raise ValueError(f"prompt_token_ids: {len(token_ids)} of them are more than model.max_model_len={longest}")
    if num_blocks > engine.num_blocks:
        raise ValueError(
            f"prompt_token_ids: {len(token_ids)} of them need {num_blocks} K/V blocks of {engine.block_size}, the pool "
            f"has cache.num_blocks={engine.num_blocks}: raise cache.num_blocks or cache.memory_bytes"
        )
