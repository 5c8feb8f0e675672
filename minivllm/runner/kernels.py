"""Which kernels compute a step, and the parts that go with them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os

import torch

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
_OLDEST_TRITON = (3, 6)


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
            f"execution.kernels=numba: computes in float32 on a CPU, not in {str(dtype).removeprefix('torch.')} on "
            f"{execution.device}: choose execution.kernels=torch, or execution.dtype=float32"
        )
    if kernels == "triton":
        _check_triton(execution, dtype)
    elif execution.cuda_graphs:
        raise ValueError(
            f"execution.cuda_graphs=true: needs execution.kernels=triton, not {kernels}: choose it, or "
            "execution.cuda_graphs=null"
        )
    if kernels == "torch" and execution.batch_invariant:
        raise ValueError(
            "execution.batch_invariant=true: PyTorch's operations change with the batch; choose execution.kernels=auto"
        )
    return kernels


def is_interpreted() -> bool:
    """Whether Triton interprets its kernels on the CPU instead of compiling them."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _check_triton(execution: ExecutionConfig, dtype: torch.dtype) -> None:
    found = _triton_version()
    if found is None:
        raise ValueError(
            "execution.kernels=triton: triton is not installed: pip install triton, or choose execution.kernels=torch"
        )
    if found < _OLDEST_TRITON:
        raise ValueError(
            f"execution.kernels=triton: triton {found[0]}.{found[1]} is too old: pip install 'triton>=3.6', or choose "
            "execution.kernels=torch"
        )
    if execution.device == "cpu" and not is_interpreted():
        raise ValueError(
            "execution.kernels=triton: needs a GPU, and execution.device=cpu; choose execution.kernels=auto (with "
            "TRITON_INTERPRET=1 the kernels run on a CPU, a thousand times slower: for tests)"
        )
    if execution.device == "cpu" and dtype is torch.bfloat16:
        raise ValueError(
            "execution.dtype=bfloat16: Triton's interpreter computes it wrongly; choose float16 or float32"
        )


def _triton_version() -> tuple[int, int] | None:
    """Major and minor version; None where there is no Triton."""
    for package in ("triton", "pytorch-triton"):
        try:
            major, minor = importlib.metadata.version(package).split(".")[:2]
        except importlib.metadata.PackageNotFoundError:
            continue
        return int(major), int(minor)
    return None


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
