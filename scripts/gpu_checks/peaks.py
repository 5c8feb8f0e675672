"""The ceilings, measured first: how fast this GPU reads, copies and multiplies. All floors are made of them."""

from __future__ import annotations

from collections.abc import Iterator

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
    device = check.device
    source = torch.randint(0, 2**31, (_BYTES // 4,), dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    copy_bps = 2 * _BYTES / eager_ms(check, [lambda: target.copy_(source)], tries=20, best=True) * 1e3
    check.figure("peak: copy", copy_bps / 1e12, "TB/s", detail="4 GiB to 4 GiB, bytes read and written; best of 20")
    # A sum in its own dtype reads everything and writes nothing.
    floats = target.view(torch.float32)
    floats.normal_()
    read_bps = _BYTES / eager_ms(check, [lambda: floats.amax(), lambda: floats.sum()], tries=20, best=True) * 1e3
    read_bps = max(read_bps, copy_bps)
    check.figure("peak: read", read_bps / 1e12, "TB/s", detail="4 GiB reduced, or the copy where that is faster")
    del source, target, floats
    flops = {}
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        size = _SIZE if dtype is not torch.float32 else _SIZE // 2
        pairs = [[torch.randn(size, size, device=device).to(dtype) for _ in range(2)] for _ in range(2)]
        launches = [lambda a=a, b=b: a @ b for a, b in pairs]
        flops[word(dtype)] = 2 * size**3 / eager_ms(check, launches, tries=20, best=True) * 1e3
        check.figure(
            f"peak: matmul {word(dtype)}",
            flops[word(dtype)] / 1e12,
            "TFLOP/s",
            detail=f"{size} cubed, random; best of 20",
        )
    Peaks(read_bps=read_bps, copy_bps=copy_bps, flops=flops).save(check.out / "peaks.json")
