"""What a drafter is made for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minivllm.config import EngineConfig

if TYPE_CHECKING:
    import torch

    from minivllm.layers.base import LayerOps
    from minivllm.models.llama import Llama


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DraftTarget:
    """The model that is drafted for, and the engine around it.

    Args:
        config: the engine's.
        model: the target, loaded.
        kernels: what computes: `torch`, `numba` or `triton`.
        ops: the layer operations of these kernels.
        device, dtype: of activations and K/V.
        max_model_len: longest sequence, prompt and output.
    """

    config: EngineConfig
    model: Llama
    kernels: str
    ops: LayerOps
    device: torch.device
    dtype: torch.dtype
    max_model_len: int
