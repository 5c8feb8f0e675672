"""The product with 4-bit codes in Triton: its definition, whatever the groups, rows and splits.

Triton's interpreter runs no PTX: there codes are unpacked in Triton's own words, and the PTX that a GPU runs instead is
interpreted here, for every code.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="Triton is for Linux")

from minivllm_kernels.int4_linear.config import CodesConfig, choose_config, choose_splits
from minivllm_kernels.int4_linear.kernel import dequantize, linear, pack
from minivllm_kernels.int4_linear.layout import PackedCodes
from minivllm_kernels.int4_linear.reference import dequantize_reference, int4_linear_reference
from minivllm_kernels.int4_linear.unpack import unpack_ptx

# Where a GPU is, it is what runs them, and bfloat16 with it, which Triton's interpreter gets wrong.
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else [])]
# Inputs and the size of their groups: of one stretch of 128 and of many, of whole ones and of half a one at the end.
GROUPS = [(256, 32), (704, 32), (704, 64), (256, 128), (384, 128), (512, 256), (300, 300), (40, 40), (64, 64)]


@pytest.fixture(autouse=True, scope="module")
def _new_memory_is_nan() -> Iterator[None]:
    torch.set_default_device(DEVICE)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_default_device(None)


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    draws = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(*shape, generator=draws, device="cpu").to(DEVICE, dtype)


def _weight(
    num_out: int, num_in: int, group_size: int, dtype: torch.dtype, *, zeros: bool = True, seed: int = 1
) -> tuple[Tensor, Tensor, Tensor | None]:
    draws = torch.Generator("cpu").manual_seed(seed)
    codes = torch.randint(0, 16, (num_out, num_in), generator=draws, dtype=torch.uint8, device="cpu")
    scales = torch.rand((num_out, num_in // group_size), generator=draws, device="cpu") + 0.1
    middles = torch.randint(0, 16, scales.shape, generator=draws, dtype=torch.uint8, device="cpu")
    return codes.to(DEVICE), scales.to(DEVICE, dtype), middles.to(DEVICE) if zeros else None


def _wanted(x: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None, bias: Tensor | None = None) -> Tensor:
    return int4_linear_reference(*(None if one is None else one.cpu() for one in (x, codes, scales, zeros, bias))).to(
        DEVICE
    )


def _between_nans(x: Tensor) -> Tensor:
    """The same rows in memory whose other rows and features are NaN."""
    wide = torch.full((x.shape[0] + 2, x.shape[1] + 16), float("nan"), dtype=x.dtype)
    wide[1:-1, 8:-8] = x
    return wide[1:-1, 8:-8]


def _close(got: Tensor, wanted: Tensor) -> None:
    # Weights are exact: what is left is a sum in float32 and one rounding.
    tolerance = 2e-5 if got.dtype is torch.float32 else 2 * torch.finfo(got.dtype).eps
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance * wanted.abs().max().item())


@settings(max_examples=16, deadline=None, derandomize=True)
@given(
    st.sampled_from([1, 2, 7, 17, 65]),
    st.integers(1, 140),
    st.sampled_from(GROUPS),
    st.sampled_from(DTYPES),
    st.booleans(),
    st.booleans(),
)
def test_linear_is_its_definition(
    num_rows: int, num_out: int, groups: tuple[int, int], dtype: torch.dtype, with_zeros: bool, with_bias: bool
) -> None:
    num_in, group_size = groups
    # Float32 has tiles of 16 rows by 32 outputs, many of them.
    num_out = num_out if dtype is not torch.float32 else num_out % 40 + 1
    x = _between_nans(_random(num_rows, num_in, dtype=dtype))
    weight = _weight(num_out, num_in, group_size, dtype, zeros=with_zeros)
    bias = _random(num_out, seed=2, dtype=dtype) if with_bias else None
    got = linear(x, pack(*weight), bias)
    assert got.dtype is dtype and got.is_contiguous()
    _close(got, _wanted(x, *weight, bias))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("groups", GROUPS, ids=lambda pair: f"{pair[0]}by{pair[1]}")
def test_the_weight_is_unpacked_and_rounded_once(groups: tuple[int, int], dtype: torch.dtype) -> None:
    for zeros in (True, False):
        weight = _weight(40, *groups, dtype, zeros=zeros)
        expected = dequantize_reference(*(None if one is None else one.cpu() for one in weight)).to(DEVICE, dtype)
        assert torch.equal(dequantize(pack(*weight)), expected)


@pytest.mark.parametrize("num_splits", [1, 3, 6])
def test_splits_add_up_and_leave_their_counters_at_zero(num_splits: int) -> None:
    # Two tiles of rows, two of outputs, six stretches.
    config = CodesConfig(block_m=16, block_n=64, num_splits=num_splits, num_warps=4, num_stages=2)
    x, weight = _random(19, 704, dtype=torch.float16), _weight(70, 704, 64, torch.float16)
    packed = pack(*weight)
    got = linear(x, packed, config=config)
    _close(got, _wanted(x, *weight))
    assert not packed.counters.any()
    assert torch.equal(linear(x, packed, config=config), got)


def test_a_split_that_has_less_to_do_than_the_others_is_complete() -> None:
    # Three stretches, two for the first split.
    config = CodesConfig(block_m=16, block_n=32, num_splits=2, num_warps=4, num_stages=2)
    x, weight = _random(3, 384), _weight(20, 384, 128, torch.float32)
    _close(linear(x, pack(*weight), config=config), _wanted(x, *weight))


def test_many_rows_are_multiplied_by_the_weight_in_full_precision() -> None:
    weight = _weight(20, 64, 32, torch.float16)
    packed, x, bias = pack(*weight), _random(257, 64, dtype=torch.float16), _random(20, seed=2, dtype=torch.float16)
    assert torch.equal(linear(x, packed, bias), F.linear(x, dequantize(packed), bias))
    # The weight itself was rounded.
    torch.testing.assert_close(linear(x, packed, bias), _wanted(x, *weight, bias), rtol=2e-3, atol=0.05)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_is_bitwise_the_same_in_any_batch_where_that_is_asked_for(dtype: torch.dtype) -> None:
    # 260 rows are more than are left to cuBLAS otherwise.
    x, packed = _random(260, 256, dtype=dtype), pack(*_weight(33, 256, 64, dtype))
    whole = linear(x, packed, batch_invariant=True)
    for first, end in ((0, 1), (259, 260), (100, 170)):
        assert torch.equal(linear(x[first:end], packed, batch_invariant=True), whole[first:end])


def test_what_is_asked_to_be_the_same_in_any_batch_has_one_tile_and_no_splits() -> None:
    for num_out, num_in in ((512, 256), (1024, 3072), (24_576, 4096)):
        for dtype in (torch.float32, torch.bfloat16):
            chosen = {
                choose_config(rows, num_out, num_in, bits=4, dtype=dtype, num_sms=132, batch_invariant=True)
                for rows in (1, 16, 17, 64, 65, 256, 257, 9000)
            }
            assert len(chosen) == 1 and chosen.pop().num_splits == 1


def test_no_rows_give_no_rows() -> None:
    assert linear(torch.empty(0, 32), pack(*_weight(5, 32, 32, torch.float32))).shape == (0, 5)


@pytest.mark.parametrize("group_size", [16, 48, 96])
def test_groups_that_no_instruction_fits_are_an_error(group_size: int) -> None:
    with pytest.raises(ValueError, match=f"quantization.group_size={group_size} of 192 inputs: must be 32, 64"):
        pack(*_weight(8, 192, group_size, torch.float16))


def test_scales_are_kept_in_the_dtype_asked_for() -> None:
    codes, scales, zeros = _weight(40, 128, 64, torch.float32)
    x, packed = _random(3, 128, dtype=torch.float16), pack(codes, scales, zeros, dtype=torch.float16)
    _close(linear(x, packed), _wanted(x, codes, scales.half(), zeros))


def _bytes_a_weight(packed: PackedCodes) -> float:
    return packed.nbytes / (packed.num_out * packed.num_in)


def test_a_large_weight_takes_little_more_than_its_codes() -> None:
    for group_size, zeros, bits in ((128, False, 4.125), (128, True, 4.25), (32, False, 4.5), (4096, True, 4.01)):
        packed = pack(*_weight(1408, 4096, group_size, torch.float16, zeros=zeros))
        assert _bytes_a_weight(packed) * 8 == pytest.approx(bits, abs=0.01)


def test_splits_keep_all_sms_reading_and_no_part_is_empty() -> None:
    def programs(num_rows: int, num_out: int, num_in: int) -> float:
        config = choose_config(num_rows, num_out, num_in, bits=4, dtype=torch.bfloat16, num_sms=132)
        stretches, tiles = num_in // 128, -(-num_rows // config.block_m) * -(-num_out // config.block_n)
        assert -(-stretches // -(-stretches // config.num_splits)) == config.num_splits
        return tiles * config.num_splits / 132

    # Three to six programs of a small tile for each SM, where there are stretches enough.
    for num_out, num_in in ((4096, 4096), (6144, 4096), (24_576, 4096), (4096, 12_288)):
        for num_rows in (1, 16, 32):
            assert 2.5 < programs(num_rows, num_out, num_in) < 6.1, (num_rows, num_out, num_in)
        for num_rows in (64, 128, 256):
            assert programs(num_rows, num_out, num_in) > 0.9, (num_rows, num_out, num_in)
    # The reference model's two stretches are two splits at most.
    assert choose_splits(num_tiles=8, num_steps=2, programs=3, overhead=1, num_sms=132) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("zeros", [False, True], ids=["middle", "zeros"])
def test_ptx_unpacks_each_4_bit_code_exactly(dtype: torch.dtype, zeros: bool) -> None:
    draws = np.random.default_rng(0)
    words = draws.integers(0, 2**32, (2, 4096), dtype=np.uint32)
    unit = 1024.0 if dtype is torch.float16 else 128.0
    for zero in range(16) if zeros else (8,):
        # Each quarter of the slices has a zero of its own.
        quarters = [(zero + 5 * i) % 16 if zeros else 8 for i in range(4)]
        minus = [_pair(torch.tensor(-unit - one).to(dtype)) for one in quarters]
        registers = {"$8": words[0], "$9": words[1], **({f"${10 + i}": minus[i] for i in range(4)} if zeros else {})}
        run_ptx(unpack_ptx(4, dtype, has_zeros=zeros), registers, 4096)
        for number in range(8):
            for half, source in enumerate(words):
                expected = (source >> np.uint32(4 * number) & np.uint32(15)).astype(np.float32) - quarters[number // 2]
                assert np.array_equal(half_of(registers[f"${number}"], half, dtype), expected), (number, half)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_ptx_unpacks_each_8_bit_code_exactly(dtype: torch.dtype) -> None:
    bytes_of = np.arange(-128, 128, dtype=np.int8)
    first = np.stack([np.roll(bytes_of, 7 * i) for i in range(4)], axis=1)
    registers = {"$4": first.copy().view(np.uint32)[:, 0], "$5": first[::-1].copy().view(np.uint32)[:, 0]}
    run_ptx(unpack_ptx(8, dtype, has_zeros=False), registers, 256)
    for number in range(4):
        for half, source in enumerate((first, first[::-1])):
            assert np.array_equal(half_of(registers[f"${number}"], half, dtype), source[:, number].astype(np.float32))


def _pair(number: Tensor) -> np.ndarray:
    """A register that has a number of 16 bits twice."""
    bits = np.uint32(int(number.cpu().view(torch.int16)) & 0xFFFF)
    return np.full(4096, bits << np.uint32(16) | bits, dtype=np.uint32)


def half_of(register: np.ndarray, half: int, dtype: torch.dtype) -> np.ndarray:
    """The lower or the upper number of a register, in float32."""
    bits = register >> np.uint32(16 * half) & np.uint32(0xFFFF)
    return bits.astype(np.uint16).view(np.float16).astype(np.float32) if dtype is torch.float16 else _wide(bits)


def _wide(bfloat16: np.ndarray) -> np.ndarray:
    return (bfloat16.astype(np.uint32) << np.uint32(16)).view(np.float32)


def run_ptx(text: str, registers: dict[str, np.ndarray], size: int) -> None:
    """Carry out the instructions of `unpack` on registers of so many threads."""

    def value(operand: str) -> np.ndarray:
        if operand in registers:
            return registers[operand]
        return np.full(size, int(operand, 0), dtype=np.uint32)

    for line in text.strip("{}").split(";"):
        if not line.strip() or line.strip().startswith(".reg"):
            continue
        opcode, operands = line.split(maxsplit=1)
        target, *sources = [operand.strip() for operand in operands.split(",")]
        registers[target] = _instruction(opcode, *(value(operand) for operand in sources))


def _instruction(opcode: str, a: np.ndarray, *others: np.ndarray) -> np.ndarray:
    if opcode == "mov.b32":
        return a
    if opcode == "shr.u32":
        return a >> others[0]
    if opcode == "lop3.b32":
        table, result = int(others[2][0]), np.zeros_like(a)
        for case in range(8):
            if table >> case & 1:
                terms = [x if case >> place & 1 else ~x for x, place in ((a, 2), (others[0], 1), (others[1], 0))]
                result |= terms[0] & terms[1] & terms[2]
        return result
    if opcode == "prmt.b32":
        # Byte i of the result is the byte of (others[0], a) that digit i of the selector names.
        eight = np.stack([(x >> np.uint32(8 * i)) & np.uint32(255) for x in (a, others[0]) for i in range(4)])
        selector = int(others[1][0])
        picked = [eight[selector >> (4 * i) & 15] << np.uint32(8 * i) for i in range(4)]
        return picked[0] | picked[1] | picked[2] | picked[3]
    dtype = {"f16x2": torch.float16, "bf16x2": torch.bfloat16}[opcode.rsplit(".", 1)[1]]
    halves = []
    for half in (0, 1):
        numbers = [half_of(x, half, dtype).astype(np.float64) for x in (a, *others)]
        wide = {"add": lambda x, y: x + y, "fma": lambda x, y, z: x * y + z}[opcode.split(".")[0]](*numbers)
        rounded = torch.from_numpy(wide).to(dtype).view(torch.int16).numpy().astype(np.uint16).astype(np.uint32)
        halves.append(rounded << np.uint32(16 * half))
    return halves[0] | halves[1]
