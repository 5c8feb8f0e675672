"""The ceilings, measured first: how fast this GPU reads, copies and multiplies. All floors are made of them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from gpu_checks.check import Check, Peaks, Piece, word
from gpu_checks.timing import eager_ms

_BYTES = 4 * 2**30
_SIZE = 8192


def pieces(check: Check) -> Iterator[Piece]:
    yield "peaks: bandwidth and arithmetic", lambda: _measure(check)


def _measure(check: Check) -> None:
    if check.tiny:
        for name, unit in (("read", "TB/s"), ("copy", "TB/s"), ("matmul float16", "TFLOP/s")):
            check.figure(f"peak: {name}", None, unit)
        return
    copy_bps = _copy_bps(check)
    check.figure("peak: copy", copy_bps / 1e12, "TB/s", detail="4 GiB to 4 GiB, bytes read and written; best of 20")
    # A copy reads too: what it moves a read can.
    read_bps = max(copy_bps, _read_bps(check))
    check.figure("peak: read", read_bps / 1e12, "TB/s", detail="4 GiB reduced, or the copy where that is faster")
    flops = {}
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        size = _SIZE // 2 if dtype is torch.float32 else _SIZE
        flops[word(dtype)] = _flops(check, dtype, size)
        name = f"peak: matmul {word(dtype)}"
        check.figure(name, flops[word(dtype)] / 1e12, "TFLOP/s", detail=f"{size} cubed, random; best of 20")
    Peaks(read_bps=read_bps, copy_bps=copy_bps, flops=flops).save(check.out / "peaks.json")


def _copy_bps(check: Check) -> float:
    source = torch.randint(0, 2**31 - 1, (_BYTES // 4,), dtype=torch.int32, device=check.device)
    target = torch.empty_like(source)
    return 2 * _BYTES / eager_ms([partial(target.copy_, source)], tries=20, best=True) * 1e3


def _read_bps(check: Check) -> float:
    """The faster of two reductions, which read everything and write next to nothing."""
    values = torch.randn(_BYTES // 4, device=check.device)
    return _BYTES / eager_ms([values.amax, values.sum], tries=20, best=True) * 1e3


def _flops(check: Check, dtype: torch.dtype, size: int) -> float:
    pairs = [torch.randn((2, size, size), device=check.device).to(dtype).unbind(0) for _ in range(2)]
    return 2 * size**3 / eager_ms([partial(torch.mm, *pair) for pair in pairs], tries=20, best=True) * 1e3
