"""Whether Triton's kernels can run here, and why not. It does not import Triton."""

from __future__ import annotations

import importlib.metadata
import os

OLDEST = (3, 6)


def is_interpreted() -> bool:
    """Whether Triton interprets its kernels on the CPU instead of compiling them."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def version() -> tuple[int, int] | None:
    """Major and minor version; None where there is no Triton."""
    for package in ("triton", "pytorch-triton"):
        try:
            major, minor = importlib.metadata.version(package).split(".")[:2]
        except importlib.metadata.PackageNotFoundError:
            continue
        return int(major), int(minor)
    return None


def require(key: str, instead: str, *, device: str, dtype: str) -> None:
    """Make sure that what `key` chooses can run.

    Args:
        key: as the user wrote it, such as `attention=triton`.
        instead: what to choose where it cannot.
        device: `cpu` or `cuda`.
        dtype: `float32`, `float16` or `bfloat16`.

    Raises:
        ValueError: it cannot, in one line.
    """
    found = version()
    if found is None:
        raise ValueError(f"{key}: triton is not installed: pip install 'triton>=3.6', or choose {instead}")
    if found < OLDEST:
        raise ValueError(
            f"{key}: triton {found[0]}.{found[1]} is too old: pip install 'triton>=3.6', or choose {instead}"
        )
    if device == "cpu" and not is_interpreted():
        raise ValueError(
            f"{key}: needs execution.device=cuda; choose {instead} on a CPU (with TRITON_INTERPRET=1 the kernels are "
            "interpreted there, a thousand times slower: for tests)"
        )
    if device == "cpu" and dtype == "bfloat16":
        raise ValueError(
            f"execution.dtype=bfloat16: {key} is interpreted on a CPU, which gets bfloat16 wrong; choose float32"
        )
