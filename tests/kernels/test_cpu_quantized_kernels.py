"""The compiled CPU kernels of narrow weights against their references: odd shapes, groups, any batch and number of
threads, numbers that are none, and a processor without the instructions of this one."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minivllm_kernels.half_linear import cpu as half
from minivllm_kernels.int4_linear import cpu as int4
from minivllm_kernels.int4_linear.reference import int4_linear_reference
from minivllm_kernels.int8_dynamic_linear import cpu as dynamic
from minivllm_kernels.int8_dynamic_linear.reference import int8_dynamic_linear_reference, quantize_rows_reference
from minivllm_kernels.int8_linear import cpu as int8
from minivllm_kernels.int8_linear.reference import int8_linear_reference
from minivllm_kernels.linear import cpu as float32

# Of float32, half a unit in the last place.
_ROUNDING = 2.0**-24
_KERNELS = ["int4", "int4zeros", "int8", "dynamic", "bfloat16", "float16"]


@pytest.fixture(scope="module", autouse=True)
def _what_is_not_written_is_nan() -> Iterator[None]:
    assert torch.utils.deterministic.fill_uninitialized_memory
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.zeros(1).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    yield
    torch.set_num_threads(before)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _codes(low: int, high: int, *shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randint(low, high, shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True, kw_only=True)
class _Product:
    """One kernel with one weight, and what it should give, in float64; `size` is the sum of all terms' magnitudes."""

    run: Callable[[Tensor, Tensor | None], Tensor]
    wanted: Callable[[Tensor, Tensor | None], Tensor]
    size: Callable[[Tensor, Tensor | None], Tensor]


def _make_product(kind: str, out: int, inputs: int, groups: int = 1) -> _Product:
    scales = 0.01 + 0.01 * _random(out, groups, seed=5).abs()
    if kind.startswith("int4"):
        codes, halves = _codes(0, 16, out, inputs, dtype=torch.uint8), scales.half()
        zeros = _codes(0, 16, out, groups, dtype=torch.uint8, seed=7) if kind == "int4zeros" else None
        weight = halves.double().repeat_interleave(inputs // groups, 1) * (
            codes.double() - (8 if zeros is None else zeros.double().repeat_interleave(inputs // groups, 1))
        )
        packed4 = int4.pack(codes, halves, zeros)
        return _Product(
            run=lambda x, bias: int4.linear(x, packed4, bias),
            wanted=lambda x, bias: int4_linear_reference(x.double(), codes, halves, zeros, bias),
            size=lambda x, bias: _size_of(x, weight, bias),
        )
    if kind == "int8":
        codes = _codes(-128, 128, out, inputs, dtype=torch.int8)
        weight = scales.double().repeat_interleave(inputs // groups, 1) * codes.double()
        packed8 = int8.pack(codes, scales)
        return _Product(
            run=lambda x, bias: int8.linear(x, packed8, bias),
            wanted=lambda x, bias: int8_linear_reference(x.double(), codes, scales, bias),
            size=lambda x, bias: _size_of(x, weight, bias),
        )
    if kind == "dynamic":
        codes = _codes(-128, 128, out, inputs, dtype=torch.int8)
        packed = dynamic.pack(codes, scales[:, 0])

        # Rounded to bytes as float32, computed as float64.
        def wanted(x: Tensor, bias: Tensor | None) -> Tensor:
            x_codes, x_scales = quantize_rows_reference(x)
            product = (x_codes.double() @ codes.double().t()) * x_scales.double()[:, None] * scales[:, 0].double()
            return product if bias is None else product + bias.double()

        return _Product(
            run=lambda x, bias: dynamic.linear(x, packed, bias),
            wanted=wanted,
            # Sums are exact: only what follows them is rounded.
            size=lambda x, bias: (wanted(x, None).abs() + (0 if bias is None else bias.abs())) * 4 / (inputs + 3),
        )
    weight = (0.1 * _random(out, inputs)).to(getattr(torch, kind))
    packed16 = half.pack(weight)
    return _Product(
        run=lambda x, bias: half.linear(x, packed16, bias),
        wanted=lambda x, bias: torch.nn.functional.linear(
            x.double(), weight.double(), None if bias is None else bias.double()
        ),
        size=lambda x, bias: _size_of(x, weight.double(), bias),
    )


def _size_of(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    size = x.double().abs() @ weight.abs().t()
    return size if bias is None else size + bias.abs()


def _check(product: _Product, rows: int, out: int, inputs: int, with_bias: bool) -> None:
    x, bias = _random(rows, inputs, seed=1), _random(out, seed=2) if with_bias else None
    got, wanted = product.run(x, bias), product.wanted(x, bias)
    assert got.shape == (rows, out) and got.dtype is torch.float32
    # A sum of n rounded terms, in whatever order, is off by less than n roundings of the sum of their magnitudes.
    assert ((got - wanted).abs() <= (inputs + 3) * _ROUNDING * product.size(x, bias)).all()


@pytest.mark.parametrize("rows", [0, 1, 2, 7, 8, 9, 17, 33])
@pytest.mark.parametrize("kind", _KERNELS)
def test_a_product_is_its_definition_for_any_number_of_rows(kind: str, rows: int) -> None:
    for threads, out, inputs, groups in ((1, 97, 45, 1), (2, 33, 704, 22), (2, 160, 256, 2), (2, 64, 704, 1)):
        product = _make_product(kind, out, inputs, 1 if kind == "dynamic" else groups)
        with _threads(threads):
            _check(product, rows, out, inputs, with_bias=rows % 2 == 1)


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(_KERNELS),
    rows=st.integers(0, 20),
    out=st.integers(1, 140),
    group_size=st.integers(1, 4).map(lambda n: 32 * n),
    groups=st.integers(1, 3),
    odd_inputs=st.none() | st.integers(1, 70),
    with_bias=st.booleans(),
    threads=st.integers(1, 3),
)
def test_a_product_is_its_definition_for_any_shape(
    kind: str, rows: int, out: int, group_size: int, groups: int, odd_inputs: int | None, with_bias: bool, threads: int
) -> None:
    inputs, groups = (group_size * groups, groups) if odd_inputs is None else (odd_inputs, 1)
    with _threads(threads):
        _check(_make_product(kind, out, inputs, groups), rows, out, inputs, with_bias)


@pytest.mark.parametrize("kind", _KERNELS)
def test_a_row_is_bitwise_the_same_in_any_batch_and_on_any_number_of_threads(kind: str) -> None:
    product, x, bias = _make_product(kind, 230, 96, 3), _random(45, 96, seed=1), _random(230, seed=2)
    with _threads(1):
        whole = product.run(x, bias)
    for first, end in ((0, 1), (44, 45), (3, 5), (7, 10), (0, 8), (20, 29), (5, 21), (28, 45), (0, 45)):
        for threads in (1, 2, 3):
            with _threads(threads):
                assert torch.equal(product.run(x[first:end].contiguous(), bias), whole[first:end])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("kind", _KERNELS)
def test_a_row_with_a_nan_or_an_infinity_is_no_number_and_its_neighbours_are_spared(kind: str, value: float) -> None:
    product = _make_product(kind, 70, 45)
    for rows in (3, 20):
        x = _random(rows, 45)
        wanted = product.run(x, None)
        x[1, 44] = value
        got = product.run(x, None)
        assert not got[1].isfinite().any()
        others = [i for i in range(rows) if i != 1]
        assert torch.equal(got[others], wanted[others])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("inputs", [1, 2, 45, 96])
def test_weights_of_16_bits_give_bitwise_what_their_float32_copies_give(dtype: torch.dtype, inputs: int) -> None:
    out, rows = 71, torch.tensor([70, 0, 31, 32, 0])
    weight, bias = _random(out, inputs).to(dtype), _random(out, seed=2)
    packed, panels = half.pack(weight), float32.pack_panels(weight.float())
    padded = torch.zeros(panels.shape[0] * panels.shape[2])
    padded[:out] = bias
    for num_rows in (1, 2, 9):
        x = _random(num_rows, inputs, seed=1)
        assert torch.equal(half.linear(x, packed, bias), float32.linear(x, panels, padded, out))
    assert torch.equal(half.unpack_rows(packed, rows), weight[rows].float())
    assert half.unpack_rows(packed, rows[:0]).shape == (0, inputs)


def test_every_float16_is_widened_exactly() -> None:
    weight = torch.arange(2**16).to(torch.int32).to(torch.int16).view(torch.float16)[:, None]
    got = half.linear(torch.ones(1, 1), half.pack(weight))[0]
    # -0 + 0 is 0.
    torch.testing.assert_close(got, weight[:, 0].float() + 0.0, atol=0, rtol=0, equal_nan=True)
    assert torch.equal(got.isnan(), weight[:, 0].isnan())


def test_rows_are_rounded_to_bytes_as_the_reference_does_to_the_bit() -> None:
    largest = 2.0 ** torch.linspace(-110, 110, 80)
    # What lies next to a half shows how the scale's inverse was rounded, and halves how they are.
    halves = ((torch.arange(127) + 0.5) / (127 / largest).double()[:, None]).float()
    below, above = halves.nextafter(torch.tensor(0.0)), halves.nextafter(largest[:, None])
    x = torch.cat([largest[:, None], -halves, below, -above, halves], dim=1)
    x[5], x[6] = 0.0, torch.arange(x.shape[1]) - 0.5
    x[6, 128:] = 127.0
    codes, scales = quantize_rows_reference(x)
    assert codes[6, :8].tolist() == [0, 0, 2, 2, 4, 4, 6, 6] and (scales[6], scales[5]) == (1.0, 0.0)
    # The unit matrix shows the codes themselves.
    packed = dynamic.pack(torch.eye(x.shape[1], dtype=torch.int8), torch.ones(x.shape[1]))
    for rows in (slice(0, 80), slice(3, 4), slice(4, 6)):
        assert torch.equal(dynamic.linear(x[rows], packed), codes[rows].float() * scales[rows, None])


def test_a_row_of_zeros_or_of_next_to_nothing_gives_the_bias() -> None:
    packed, bias = dynamic.pack(_codes(-127, 128, 40, 50, dtype=torch.int8), torch.ones(40)), _random(40)
    x = torch.zeros(3, 50)
    x[1] = 1e-38
    assert torch.equal(dynamic.linear(x, packed, bias), bias.expand(3, 40))


def test_sums_of_the_largest_bytes_are_exact() -> None:
    inputs = 20_000
    codes = torch.full((33, inputs), -128, dtype=torch.int8)
    packed = dynamic.pack(codes, torch.ones(33))
    for sign in (1.0, -1.0):
        x = torch.full((9, inputs), sign * 127.0)
        assert torch.equal(dynamic.linear(x, packed), int8_dynamic_linear_reference(x, codes, torch.ones(33)))


def test_packed_weights_are_as_small_as_they_should_be() -> None:
    out, inputs = 64, 512
    halves = out * inputs * 2
    codes, scales = _codes(0, 16, out, inputs, dtype=torch.uint8), torch.ones(out, inputs // 128)
    assert int4.pack(codes, scales).nbytes == (out * inputs * 4 + scales.numel() * 16) // 8 < 0.26 * halves
    zeros = torch.full(scales.shape, 7, dtype=torch.uint8)
    assert int4.pack(codes, scales, zeros).nbytes == (out * inputs * 4 + scales.numel() * 24) // 8 < 0.27 * halves
    assert int8.pack(codes.view(torch.int8), scales[:, :1]).nbytes == out * inputs + 4 * out
    assert dynamic.pack(codes.view(torch.int8), scales[:, 0]).nbytes == out * inputs + 8 * out
    assert half.pack(torch.ones(out, inputs, dtype=torch.bfloat16)).nbytes == halves


@pytest.mark.parametrize("groups", [3, 5], ids=["size15", "unequal"])
def test_groups_that_are_not_computed_are_refused(groups: int) -> None:
    codes, scales = _codes(0, 16, 4, 45 if groups == 3 else 64, dtype=torch.uint8), torch.ones(4, groups)
    with pytest.raises(ValueError, match=rf"^{groups} groups of scales for \d+ inputs: choose a group size"):
        int4.pack(codes, scales)
    with pytest.raises(ValueError, match=rf"^{groups} groups of scales for \d+ inputs: choose a group size"):
        int8.pack(codes.view(torch.int8), scales)


def test_a_scale_beyond_float16_and_sums_beyond_32_bits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^a scale of 70000: scales of 4-bit weights are kept as float16$"):
        int4.pack(_codes(0, 16, 4, 32, dtype=torch.uint8), torch.full((4, 1), 7e4))
    with pytest.raises(ValueError, match=r"^131073 inputs: 8-bit products are summed exactly up to 131072$"):
        dynamic.pack(torch.zeros(1, 2**17 + 1, dtype=torch.int8), torch.ones(1))


def _outputs() -> dict[str, Tensor]:
    """Of every kernel, rows in tiles of every kind."""
    results = {}
    for kind in _KERNELS:
        product = _make_product(kind, 75, 96, 3)
        for rows in (1, 3, 37):
            results[f"{kind} {rows}"] = product.run(_random(rows, 96, seed=1), _random(75, seed=2))
        odd = _make_product(kind, 33, 45)
        results[f"{kind} odd"] = odd.run(_random(2, 45, seed=1), None)
    return results


@pytest.mark.skipif(platform.machine() != "x86_64", reason="compiles for a processor of another family")
def test_a_processor_with_fewer_instructions_computes_the_same_bits(tmp_path: Path) -> None:
    """AVX2 without AVX-512, without its dot products of bytes, without conversions of float16."""
    environment = {
        **os.environ,
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "+avx2,+fma",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, __file__, str(tmp_path / "outputs.pt")]
    subprocess.run(command, env=environment, check=True, timeout=300)
    elsewhere, here = torch.load(tmp_path / "outputs.pt"), _outputs()
    assert elsewhere.pop("has avx512f") is False
    assert elsewhere.keys() == here.keys()
    assert [name for name in here if not torch.equal(here[name], elsewhere[name])] == []


if __name__ == "__main__":
    from minivllm_kernels.cpu_ir import has_feature

    torch.save({**_outputs(), "has avx512f": has_feature("avx512f")}, sys.argv[1])
