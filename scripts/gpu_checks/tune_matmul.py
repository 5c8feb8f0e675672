"""The products of one layer, as cuBLAS does them and as the batch-invariant kernel does, against the bytes and the
arithmetic that they are: where a step's time goes that is not attention."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from gpu_checks.check import Check, Piece, word
from gpu_checks.models import SHAPES, TINY
from gpu_checks.timing import graph_ms, num_sets

from minivllm_kernels.linear.kernel import linear


def pieces(check: Check) -> Iterator[Piece]:
    for model, shape in SHAPES.items():
        shape = shape | (TINY if check.tiny else {})
        hidden, inner, size = shape["hidden_size"], shape["intermediate_size"], shape["head_dim"]
        heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
        products = {
            "qkv": ((heads + 2 * kv_heads) * size, hidden),
            "o": (hidden, heads * size),
            "gate_up": (2 * inner, hidden),
            "down": (hidden, inner),
            "head": (shape["vocab_size"], hidden),
        }
        for name, (num_out, num_in) in products.items():
            yield f"matmul {model} {name}", partial(_product, check, f"{model} {name}", num_out, num_in)


def _product(check: Check, name: str, num_out: int, num_in: int) -> None:
    dtype, device = torch.float16 if check.tiny else torch.bfloat16, check.device
    num_bytes = num_out * num_in * dtype.itemsize
    weights = [torch.randn((num_out, num_in), device=device).to(dtype) for _ in range(num_sets(check, num_bytes))]
    for rows in (2,) if check.tiny else (1, 8, 64, 256):
        x = torch.randn((rows, num_in), device=device).to(dtype)
        floor_us = None
        if check.peaks is not None:
            moved = num_bytes + rows * (num_in + num_out) * dtype.itemsize
            flops = 2 * rows * num_out * num_in
            floor_us = max(moved / check.peaks.read_bps, flops / check.peaks.flops[word(dtype)]) * 1e6
        times = {
            "cuBLAS": graph_ms(check, [partial(F.linear, x, weight) for weight in weights]),
            "ours, batch-invariant": graph_ms(check, [partial(linear, x, weight) for weight in weights]),
        }
        for way, time_ms in times.items():
            value = None if time_ms is None else time_ms * 1e3
            check.figure(f"matmul {way}: {name} N{rows}", value, "us", floor=floor_us)
