"""Which kernels compute a step, and the parts that go with them."""

from __future__ import annotations

import importlib.util

import torch

from minivllm.config import Component, ExecutionConfig
from minivllm.layers.base import LayerOps

_OPS = {"torch": "minivllm.layers.torch_ops.TorchOps", "numba": "minivllm.layers.numba_ops.NumbaOps"}
_ATTENTION = {
    "torch": "minivllm.attention.torch_backend.TorchAttention",
    "numba": "minivllm.attention.numba_backend.NumbaAttention",
}


def resolve_kernels(execution: ExecutionConfig, dtype: torch.dtype) -> str:
    """What `auto` means on this device, in this dtype.

    Raises:
        ValueError: `numba` was asked for where it cannot compute.
    """
    suits = execution.device == "cpu" and dtype is torch.float32
    if execution.kernels == "auto":
        return "numba" if suits else "torch"
    if execution.kernels == "numba" and not suits:
        raise ValueError(
            f"execution.kernels=numba: computes in float32 on a CPU, not in {str(dtype).removeprefix('torch.')} on "
            f"{execution.device}: choose execution.kernels=torch, or execution.dtype=float32"
        )
    return execution.kernels


def make_ops(kernels: str) -> LayerOps:
    """The layer operations of these kernels.

    Raises:
        ValueError: numba is missing.
    """
    if kernels == "numba" and importlib.util.find_spec("numba") is None:
        raise ValueError(
            "execution.kernels=numba: numba is not installed: pip install numba, or choose execution.kernels=torch"
        )
    ops: LayerOps = Component(target=_OPS[kernels]).make("execution.kernels")
    return ops


def attention_of(kernels: str) -> Component:
    """The attention backend of these kernels."""
    return Component(target=_ATTENTION[kernels])
