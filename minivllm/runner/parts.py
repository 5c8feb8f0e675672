"""What every runner on a real device is made of: the model, the K/V pool and the attention that reads it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minivllm.attention.base import AttentionBackend, AttentionShape
from minivllm.config import EngineConfig
from minivllm.layers.base import LayerOps, Rotary
from minivllm.models import load_model
from minivllm.models.folder import read_spec
from minivllm.models.llama import Llama, tensor_shapes
from minivllm.models.loader import resolve_dtype
from minivllm.quantization.base import LinearTarget, QuantizationScheme
from minivllm.runner.base import MemoryReport
from minivllm.runner.block_moves import BlockMoves
from minivllm.runner.kernels import attention_of, make_ops, resolve_kernels
from minivllm.runner.pool_size import pool_blocks, swap_blocks
from minivllm.speculation.base import Drafter
from minivllm.speculation.model import ModelDrafter
from minivllm.speculation.target import DraftTarget
from minivllm.transfer import upload
from minivllm_kernels.cpu_memory import advise_huge_pages


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Parts:
    """The parts, made to fit each other.

    `kv_cache` is [num_layers, num_blocks, block_size, 2, num_kv_heads, head_dim]; `features`, where a drafter wants
    them, [num_blocks * block_size, hidden_size]: the final hidden state of the token in each slot. `moves` knows all
    that is kept of a block, by the drafter too, and has room for `num_swap_blocks` of them in host memory.
    """

    device: torch.device
    dtype: torch.dtype
    kernels: str
    ops: LayerOps
    model: Llama
    max_model_len: int
    kv_cache: Tensor
    attention: AttentionBackend
    drafter: Drafter | None
    features: Tensor | None
    moves: BlockMoves
    num_swap_blocks: int

    @property
    def num_blocks(self) -> int:
        return int(self.kv_cache.shape[1])

    def memory(self) -> MemoryReport:
        cuda = self.device.type == "cuda"
        weights_bytes, kv_cache_bytes = self.model.weights_bytes, self.kv_cache.nbytes
        if self.features is not None:
            kv_cache_bytes += self.features.nbytes
        if isinstance(self.drafter, ModelDrafter):
            weights_bytes += self.drafter.weights_bytes
            kv_cache_bytes += self.drafter.bytes_per_block * self.num_blocks
        return MemoryReport(
            weights_bytes=weights_bytes,
            kv_cache_bytes=kv_cache_bytes,
            peak_allocated_bytes=torch.cuda.max_memory_allocated() if cuda else None,
            peak_reserved_bytes=torch.cuda.max_memory_reserved() if cuda else None,
            precision=self.model.precision,
        )

    def scrub(self, block_table: np.ndarray) -> None:
        """Make numbers of the K/V of a request that failed: its blocks go back to the pool, where a stray NaN would
        spoil whoever reads past its own keys.

        Args:
            block_table: [max_blocks] int32 of it, padded with -1.
        """
        blocks = upload(block_table[block_table >= 0].astype(np.int64), self.device)
        held = self.kv_cache.index_select(1, blocks)
        self.kv_cache.index_copy_(1, blocks, held.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0))

    def move_slots(self, sources: Tensor, targets: Tensor) -> None:
        """Copy what is kept of tokens from slot to slot, [n] int64 each; a source may be the target of another."""
        slots = self.kv_cache.flatten(1, 2)
        slots.index_copy_(1, targets, slots.index_select(1, sources))
        if self.features is not None:
            self.features.index_copy_(0, targets, self.features.index_select(0, sources))


def make_parts(config: EngineConfig, kernels: str) -> Parts:
    """Load the model and take the memory for its K/V.

    Args:
        config: the engine's.
        kernels: what computes, as `resolve_kernels` says.

    Raises:
        ValueError: a model that cannot be loaded or is too large for the device, no memory for one block.
    """
    execution = config.execution
    if execution.num_threads is not None:
        torch.set_num_threads(execution.num_threads)
    device = torch.device(execution.device)
    dtype = resolve_dtype(config.model, device=execution.device, dtype=execution.dtype)
    ops = make_ops(kernels)
    if device.type == "cuda":
        _check_weights_fit(config, dtype)
    target = LinearTarget(
        kernels=kernels, device=execution.device, dtype=dtype, batch_invariant=execution.batch_invariant
    )
    model = load_model(
        config.model,
        device=execution.device,
        dtype=execution.dtype,
        scheme=config.quantization.scheme.make("quantization", QuantizationScheme, target=target),
        skip=config.quantization.skip,
        ops=ops,
    )
    spec = model.spec
    max_model_len = spec.limit_length(config.model.max_model_len)
    size = config.cache.block_size
    drafter = _make_drafter(config, kernels, ops, model, dtype, max_model_len)
    bytes_per_block = spec.num_layers * size * 2 * spec.num_kv_heads * spec.head_dim * dtype.itemsize
    wants_features = isinstance(drafter, ModelDrafter) and drafter.wants_features
    if wants_features:
        bytes_per_block += size * spec.hidden_size * dtype.itemsize
    if isinstance(drafter, ModelDrafter):
        bytes_per_block += drafter.bytes_per_block
    kv_cache = torch.empty(
        (
            spec.num_layers,
            pool_blocks(
                config,
                bytes_per_block=bytes_per_block,
                max_model_len=max_model_len,
                free_bytes=(lambda: _free_bytes(config, model, device)) if device.type == "cuda" else None,
            ),
            size,
            2,
            spec.num_kv_heads,
            spec.head_dim,
        ),
        dtype=dtype,
        device=device,
    )
    if device.type == "cpu":
        advise_huge_pages(kv_cache)
    # Masked keys are multiplied by 0, and 0 times a stray NaN is NaN.
    kv_cache.zero_()
    features = None
    if wants_features:
        features = torch.zeros((kv_cache.shape[1] * size, spec.hidden_size), dtype=dtype, device=device)
    kept = [kv_cache.transpose(0, 1)]
    if features is not None:
        kept.append(features.view(kv_cache.shape[1], size, -1))
    if isinstance(drafter, ModelDrafter):
        drafter.allocate(kv_cache.shape[1])
        kept += drafter.block_tensors()
    num_swap_blocks = swap_blocks(config, bytes_per_block)
    shape = AttentionShape(
        num_layers=spec.num_layers,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        block_size=size,
        sliding_windows=spec.sliding_windows,
        batch_invariant=execution.batch_invariant,
    )
    backend = execution.attention or attention_of(kernels)
    return Parts(
        device=device,
        dtype=dtype,
        kernels=kernels,
        ops=ops,
        model=model,
        max_model_len=max_model_len,
        kv_cache=kv_cache,
        attention=backend.make("attention", shape=shape, kv_cache=kv_cache),
        drafter=drafter,
        features=features,
        moves=BlockMoves(kept, num_swap_blocks),
        num_swap_blocks=num_swap_blocks,
    )


def _make_drafter(
    config: EngineConfig, kernels: str, ops: LayerOps, model: Llama, dtype: torch.dtype, max_model_len: int
) -> Drafter | None:
    if config.speculation.drafter is None:
        return None
    target = DraftTarget(
        config=config,
        model=model,
        kernels=kernels,
        ops=ops,
        device=torch.device(config.execution.device),
        dtype=dtype,
        max_model_len=max_model_len,
    )
    drafter: Drafter = config.speculation.drafter.make("speculation", Drafter, target=target)
    return drafter


def find_kernels(config: EngineConfig) -> str:
    """Which kernels this engine computes with.

    Raises:
        ValueError: the device is not there, or the kernels cannot compute on it.
    """
    execution = config.execution
    if execution.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("execution.device='cuda': torch sees no GPU on this machine; choose execution.device=cpu")
    dtype = resolve_dtype(config.model, device=execution.device, dtype=execution.dtype)
    return resolve_kernels(execution, dtype)


def _check_weights_fit(config: EngineConfig, dtype: torch.dtype) -> None:
    spec = read_spec(config.model)
    shapes = tensor_shapes(spec)
    # What is quantized, now or in the checkpoint, takes a quarter or more.
    share = 0.25 if config.quantization.is_lossy or spec.quant_method else 1.0
    needed = dtype.itemsize * sum(
        math.prod(shape) * (share if ".layers." in name else 1.0) for name, shape in shapes.items()
    )
    free, total = torch.cuda.mem_get_info()
    if needed > free:
        raise ValueError(
            f"model.path={config.model.path!r}: its weights take {needed / 2**30:.1f} GiB, and of the GPU's "
            f"{total / 2**30:.1f} GiB {free / 2**30:.1f} are free: choose a smaller model, or execution.device=cpu"
        )


def _free_bytes(config: EngineConfig, model: Llama, device: torch.device) -> int:
    """What the fraction of the GPU leaves beside the weights and the largest step, which is run once to see."""
    spec = model.spec
    num_tokens = config.scheduler.max_num_batched_tokens
    q_size = spec.num_heads * spec.head_dim

    def attend(qkv: Tensor, layer: int, rotary: Rotary, at: Any) -> Tensor:
        return qkv[:, :q_size].contiguous()

    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        positions = torch.arange(num_tokens, device=device) % min(model.max_len, num_tokens)
        hidden = model.forward(torch.zeros_like(positions), positions, attend)
        num_sampled = config.scheduler.max_num_seqs
        if config.speculation.enabled:
            num_sampled *= 1 + config.speculation.num_draft_tokens
        model.compute_logits(hidden[:num_sampled]).float()
        del hidden
    torch.cuda.synchronize()
    step_bytes = torch.cuda.max_memory_allocated() - before
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    free, total = torch.cuda.mem_get_info()
    return max(0, int(free - (1 - config.cache.gpu_memory_fraction) * total) - step_bytes)
