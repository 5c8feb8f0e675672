"""Which kernels compute a step, and the parts that go with them."""

from __future__ import annotations

import importlib.util

import torch

from minivllm import triton_support
from minivllm.config import Component, ExecutionConfig
from minivllm.layers.base import LayerOps

_OPS = {
    "torch": "minivllm.layers.torch_ops.TorchOps",
    "numba": "minivllm.layers.numba_ops.NumbaOps",
    "triton": "minivllm.layers.triton_ops.TritonOps",
}
_ATTENTION = {
    "torch": "minivllm.attention.torch_backend.TorchAttention",
    "numba": "minivllm.attention.numba_backend.NumbaAttention",
    "triton": "minivllm.attention.triton_backend.TritonAttention",
}


def resolve_kernels(execution: ExecutionConfig, dtype: torch.dtype) -> str:
    """What `auto` means on this device, in this dtype.

    Raises:
        ValueError: kernels were asked for where they cannot compute, or cannot do what else was asked for.
    """
    suits = execution.device == "cpu" and dtype is torch.float32
    kernels = execution.kernels
    if kernels == "auto":
        kernels = "triton" if execution.device == "cuda" else "numba" if suits else "torch"
    if kernels == "numba" and not suits:
        raise ValueError(
            f"execution.kernels=numba: computes in float32 on a CPU, not in {_name(dtype)} on "
            f"{execution.device}: choose execution.kernels=torch, or execution.dtype=float32"
        )
    if kernels == "triton":
        triton_support.require(
            "execution.kernels=triton", "execution.kernels=torch", device=execution.device, dtype=_name(dtype)
        )
    elif execution.cuda_graphs:
        raise ValueError(
            f"execution.cuda_graphs=true: needs execution.kernels=triton, not {kernels}: choose it, or "
            "execution.cuda_graphs=null"
        )
    if kernels == "torch" and execution.batch_invariant:
        raise ValueError(
            "execution.batch_invariant=true: PyTorch's operations change with the batch; choose execution.kernels=auto"
        )
    attention = None if execution.attention is None else execution.attention.target
    if execution.batch_invariant and attention == _ATTENTION["torch"]:
        raise ValueError(
            "execution.batch_invariant=true: attention=torch changes with the batch; choose attention=auto"
        )
    if attention == _ATTENTION["triton"]:
        triton_support.require("attention=triton", "attention=auto", device=execution.device, dtype=_name(dtype))
    return kernels


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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
