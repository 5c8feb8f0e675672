"""Decode attention against its reference. Whatever no request may read is NaN, or a block that does not exist."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minivllm_kernels.paged_attention.decode_config import (
    DecodeConfig,
    block_n_for,
    decode_config,
)
from minivllm_kernels.paged_attention.kernel import UNPACK_FLOAT8_PTX, UNPACK_INT8_PTX, paged_decode
from minivllm_kernels.paged_attention.reference import paged_attention_reference

_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Tiles of 16 keys and splits from one tile up, so that short contexts have many of both.
_SMALL = DecodeConfig(block_n=16, num_splits=4, even_splits=4, min_split_size=16, max_split_size=64)
_TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Batch:
    q: Tensor
    kv_cache: Tensor
    block_table: Tensor
    context_lens: Tensor
    kv_scales: Tensor | None = None

    def decode(self, config: DecodeConfig | None, **options: Any) -> Tensor:
        out = torch.full(self.q.shape, torch.nan, dtype=self.q.dtype, device=_DEVICE)
        returned = paged_decode(
            self.q, self.kv_cache, self.block_table, self.context_lens, scale=self.q.shape[2] ** -0.5, out=out,
            kv_scales=self.kv_scales, config=config, **options,
        )  # fmt: skip
        assert returned is out
        return out

    def expected(self, sliding_window: int | None = None) -> Tensor:
        q = self.q.cpu()
        # Padding rows have no query.
        has_query = self.context_lens.cpu() > 0
        cu_seqlens_q = torch.cat([torch.zeros(1), has_query.cumsum(0)]).int()
        out = torch.zeros_like(q)
        out[has_query] = paged_attention_reference(
            q[has_query], self.kv_cache.cpu(), self.block_table.cpu(), cu_seqlens_q, self.context_lens.cpu(),
            scale=q.shape[2] ** -0.5, sliding_window=sliding_window,
            kv_scales=None if self.kv_scales is None else self.kv_scales.cpu(),
        )  # fmt: skip
        return out

    def check(self, config: DecodeConfig | None, sliding_window: int | None = None, **options: Any) -> None:
        out = self.decode(config, sliding_window=sliding_window, **options).cpu()
        tolerance = _TOLERANCE[self.q.dtype]
        torch.testing.assert_close(out, self.expected(sliding_window), rtol=tolerance, atol=tolerance)

    def row(self, row: int, width: int) -> _Batch:
        rows = slice(row, row + 1)
        return replace(
            self, q=self.q[rows], block_table=self.block_table[rows, :width].contiguous(),
            context_lens=self.context_lens[rows],
        )  # fmt: skip


def _make_batch(
    context_lens: list[int],
    *,
    num_kv_heads: int = 1,
    group_size: int = 2,
    head_dim: int = 32,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    kv_dtype: torch.dtype | None = None,
    v_size: float = 1.0,
    sliding_window: int | None = None,
    seed: int = 0,
) -> _Batch:
    generator = torch.Generator().manual_seed(seed)
    num_rows, num_heads = len(context_lens), num_kv_heads * group_size
    blocks_of = [-(-length // block_size) for length in context_lens]
    num_blocks = sum(blocks_of) + 2
    block_ids = torch.randperm(num_blocks, generator=generator).tolist()
    block_table = torch.full((num_rows, max(blocks_of) + 2), -1, dtype=torch.int32)
    written = torch.zeros(num_blocks, block_size, dtype=torch.bool)
    for row, length in enumerate(context_lens):
        for block in range(blocks_of[row]):
            block_id = block_ids.pop()
            written[block_id, : length - block * block_size] = True
            # A block whose keys have all left the window may be gone.
            gone = sliding_window is not None and (block + 1) * block_size <= length - sliding_window
            block_table[row, block] = -1 if gone else block_id
    values = torch.randn(num_blocks, block_size, 2, num_kv_heads, head_dim, generator=generator)
    values[:, :, 1] *= v_size
    kv_scales = None
    if kv_dtype is not None:
        most = 127.0 if kv_dtype is torch.int8 else 448.0
        kv_scales = values.abs().amax(-1) / most
        stored = values / kv_scales[..., None]
        kv_cache = (stored.round() if kv_dtype is torch.int8 else stored).to(kv_dtype)
        kv_scales[~written] = torch.nan
    else:
        kv_cache = values.to(dtype)
        kv_cache[~written] = torch.nan
    # One layer of a pool of two: strides are not those of a tensor of its own.
    pool = torch.stack([kv_cache, kv_cache], dim=1)
    qkv = torch.randn(num_rows, (num_heads + 2 * num_kv_heads) * head_dim, generator=generator).to(dtype).to(_DEVICE)
    return _Batch(
        q=qkv[:, : num_heads * head_dim].unflatten(1, (num_heads, head_dim)),
        kv_cache=pool.to(_DEVICE)[:, 1],
        block_table=block_table.to(_DEVICE),
        context_lens=torch.tensor(context_lens, dtype=torch.int32, device=_DEVICE),
        kv_scales=None if kv_scales is None else kv_scales.to(_DEVICE),
    )


@settings(max_examples=25, deadline=None)
@given(
    context_lens=st.lists(st.integers(0, 90), min_size=1, max_size=3),
    num_kv_heads=st.integers(1, 2),
    group_size=st.integers(1, 16),
    head_dim=st.sampled_from([32, 80, 112, 128]),
    block_size=st.sampled_from([1, 2, 16, 32]),
    sliding_window=st.none() | st.integers(1, 60),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    num_splits=st.integers(1, 4),
)
def test_every_shape_agrees_with_the_reference(
    context_lens: list[int], sliding_window: int | None, num_splits: int, **shape: Any
) -> None:
    batch = _make_batch(context_lens, sliding_window=sliding_window, **shape)
    # The reference gathers the blocks that have left the window too.
    whole = _make_batch(context_lens, **shape)
    config = replace(_SMALL, num_splits=num_splits, even_splits=min(num_splits, 3))
    out = batch.decode(config, sliding_window=sliding_window).cpu()
    tolerance = _TOLERANCE[batch.q.dtype]
    torch.testing.assert_close(out, whole.expected(sliding_window), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("head_dim", [32, 64, 80, 96, 112, 128, 256], ids=lambda d: f"D{d}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_every_head_size_with_the_tiles_chosen_for_it(head_dim: int, dtype: torch.dtype) -> None:
    _make_batch([150, 3], head_dim=head_dim, dtype=dtype).check(None)


@pytest.mark.parametrize("group_size", [1, 7, 8], ids=lambda g: f"G{g}")
@pytest.mark.parametrize("block_size", [1, 16, 64], ids=lambda b: f"B{b}")
def test_splits_of_a_group_are_merged(group_size: int, block_size: int) -> None:
    batch = _make_batch([100, 64, 17, 16, 1], group_size=group_size, block_size=block_size, dtype=torch.float16)
    batch.check(_SMALL)


def test_more_splits_than_are_merged_at_once() -> None:
    # Of 16 heads of 256 numbers one split is loaded at a time, of 16 heads of 32 numbers eight.
    config = replace(_SMALL, num_splits=10, even_splits=10)
    for head_dim in (32, 256):
        _make_batch([160, 145], group_size=16, head_dim=head_dim, dtype=torch.float16).check(config)


def test_rows_without_context_are_zero_and_read_nothing() -> None:
    for config in (_SMALL, replace(_SMALL, num_splits=1, even_splits=1)):
        batch = _make_batch([0, 20, 0], num_kv_heads=2)
        out = batch.decode(config)
        assert not out[0].any() and not out[2].any() and out[1].all()


def test_a_batch_of_padding_has_an_empty_table() -> None:
    batch = _make_batch([0, 0])
    assert not replace(batch, block_table=batch.block_table[:, :0]).decode(None).any()


def test_no_rows_launch_nothing() -> None:
    batch = _make_batch([1])
    empty = replace(batch, q=batch.q[:0], block_table=batch.block_table[:0], context_lens=batch.context_lens[:0])
    assert empty.decode(None).shape == (0, 2, 32)


def test_counters_are_left_at_zero_for_a_launch_with_other_lengths() -> None:
    counters = torch.zeros(8, dtype=torch.int32, device=_DEVICE)
    for context_lens in ([100, 0, 16], [20, 70, 50], [100, 0, 16]):
        _make_batch(context_lens, num_kv_heads=2).check(_SMALL, counters=counters)
        assert not counters.any()


@pytest.mark.parametrize("block_size", [4, 16], ids=lambda b: f"B{b}")
@pytest.mark.parametrize("group_size,head_dim", [(1, 32), (7, 80)], ids=["G1-D32", "G7-D80"])
@pytest.mark.parametrize("kv_dtype", [torch.int8, torch.float8_e4m3fn], ids=["int8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_8_bit_caches_are_scaled(
    dtype: torch.dtype, kv_dtype: torch.dtype, group_size: int, head_dim: int, block_size: int
) -> None:
    batch = _make_batch(
        [70, 0, 33], dtype=dtype, kv_dtype=kv_dtype, group_size=group_size, head_dim=head_dim, block_size=block_size
    )
    batch.check(_SMALL)


@pytest.mark.parametrize("kv_dtype", [torch.int8, torch.float8_e4m3fn], ids=["int8", "fp8"])
def test_every_byte_of_an_8_bit_cache_is_its_number(kv_dtype: torch.dtype) -> None:
    # A context of one key returns that key's values: all 256 bytes but NaN, as two heads of 128.
    stored = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(kv_dtype)
    stored = torch.where(stored.float().isnan(), torch.zeros(1), stored.float()).to(kv_dtype).view(1, 1, 1, 2, 128)
    batch = _Batch(
        q=torch.ones(1, 2, 128, device=_DEVICE),
        kv_cache=torch.cat([stored.view(torch.int8)] * 2, dim=2).view(kv_dtype).to(_DEVICE),
        block_table=torch.zeros(1, 1, dtype=torch.int32, device=_DEVICE),
        context_lens=torch.ones(1, dtype=torch.int32, device=_DEVICE),
        kv_scales=torch.ones(1, 1, 2, 2, device=_DEVICE),
    )
    assert torch.equal(batch.decode(None).cpu()[0], stored.float()[0, 0, 0])


@pytest.mark.parametrize(
    "ptx,kv_dtype,unit",
    [(UNPACK_INT8_PTX, torch.int8, 1), (UNPACK_FLOAT8_PTX, torch.float8_e4m3fn, 256)],
    ids=["int8", "fp8"],
)
def test_the_ptx_that_is_not_interpreted_unpacks_every_byte(ptx: Any, kv_dtype: torch.dtype, unit: int) -> None:
    # Each int16 beside another one: the two halves of a register must not mix.
    pairs = np.arange(65_536, dtype=np.uint32)
    low, high = _run_ptx(ptx.value, pairs | (pairs[::-1] * np.uint32(40_503) << np.uint32(16)))
    for halves, byte in ((low, pairs & 0xFF), (high, pairs >> 8)):
        number = torch.from_numpy(byte.astype(np.uint8)).view(kv_dtype).float()
        ours = torch.from_numpy((halves & 0xFFFF).astype(np.uint16).view(np.float16)).float() * unit
        assert torch.equal(ours[~number.isnan()], number[~number.isnan()])
    # And as the upper half.
    low_up, high_up = _run_ptx(ptx.value, pairs << np.uint32(16) | pairs[::-1])
    assert np.array_equal(low_up >> np.uint32(16), low & np.uint32(0xFFFF))
    assert np.array_equal(high_up >> np.uint32(16), high & np.uint32(0xFFFF))


def _run_ptx(text: str, source: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Registers $0 and $1 after instructions on $2; those of `_unpack` only."""
    registers = {"$2": source.astype(np.uint32)}

    def value(operand: str) -> np.ndarray:
        return registers[operand] if operand in registers else np.full_like(source, int(operand, 0), dtype=np.uint32)

    for line in text.replace("{", "").replace("}", "").split(";"):
        if not line.strip() or line.strip().startswith(".reg"):
            continue
        opcode, operands = line.split(maxsplit=1)
        target, *sources = [operand.strip() for operand in operands.split(",")]
        a, *others = [value(operand) for operand in sources]
        if opcode == "lop3.b32":
            table = int(sources[3], 0)
            result = np.zeros_like(a)
            for case in range(8):
                if table >> case & 1:
                    terms = [x if case >> place & 1 else ~x for x, place in ((a, 2), (others[0], 1), (others[1], 0))]
                    result |= terms[0] & terms[1] & terms[2]
        elif opcode == "sub.f16x2":
            result = (a.view(np.float16) - others[0].view(np.float16)).view(np.uint32)
        else:
            result = {
                "mov.b32": lambda x: x, "and.b32": np.bitwise_and, "shl.b32": np.left_shift, "shr.u32": np.right_shift,
            }[opcode](a, *others)  # fmt: skip
        registers[target] = result
    return registers["$0"], registers["$1"]


@pytest.mark.parametrize("kv_dtype", [torch.int8, torch.float8_e4m3fn], ids=["int8", "fp8"])
def test_small_values_keep_their_digits_in_float16(kv_dtype: torch.dtype) -> None:
    # Their scales, about 1e-5, have five binary digits in float16.
    batch = _make_batch([90], dtype=torch.float16, kv_dtype=kv_dtype, v_size=1e-3)
    assert batch.kv_scales is not None
    error = (batch.decode(_SMALL).cpu().float() - batch.expected().float()).abs().max()
    assert error < 3e-3 * batch.expected().abs().max()


def test_a_row_does_not_depend_on_what_shares_the_batch() -> None:
    config = replace(_SMALL, num_splits=3, even_splits=3)
    batch = _make_batch([130, 20, 64, 33], num_kv_heads=2, dtype=torch.float16)
    together = batch.decode(config)
    for row in range(4):
        assert torch.equal(batch.row(row, width=9).decode(config)[0], together[row])


def _split_tiles(config: DecodeConfig, context_len: int) -> int:
    """The rule of `DecodeConfig`, in tiles."""

    def up(a: int, b: int) -> int:
        return -(-a // b)

    tiles, least = up(context_len, config.block_n), up(config.min_split_size, config.block_n)
    if tiles <= 2 * least:
        return tiles
    even = min(max(up(tiles, config.even_splits), least), up(config.max_split_size, config.block_n))
    return max(even, up(tiles, config.num_splits))


def _choose(num_rows: int, max_keys: int = 40_960, **changes: int) -> DecodeConfig:
    sizes = {"head_dim": 128, "itemsize": 2, "num_sms": 132, **changes}
    return decode_config(num_pairs=8 * num_rows, max_keys=max_keys, **sizes)


def test_splits_fill_an_h200_once_and_no_more() -> None:
    for num_rows in (1, 2, 3, 8, 17, 32, 49):
        programs = 8 * num_rows * _choose(num_rows).even_splits
        assert 132 <= programs <= 3 * 132, num_rows
    assert _choose(64).even_splits == _choose(256).even_splits == 1


def test_a_short_table_needs_few_programs() -> None:
    assert _choose(1, max_keys=100).num_splits == 1
    assert _choose(1, max_keys=1000).num_splits == 8
    assert _choose(256, max_keys=2048).num_splits == 1


def test_a_long_context_among_many_short_ones_is_split() -> None:
    config = _choose(256)
    assert [_split_tiles(config, length) * config.block_n for length in (1000, 2048, 8192, 32768)] == [
        1024, 2048, 2048, 4096,
    ]  # fmt: skip


def test_tiles_are_about_32_kilobytes() -> None:
    sizes = [(32, 2), (64, 2), (128, 2), (256, 2), (128, 4), (256, 4), (128, 1)]
    assert [block_n_for(*size) for size in sizes] == [128, 128, 64, 32, 32, 16, 128]
