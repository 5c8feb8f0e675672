"""Each scheme against its mathematical definition: the product with what its codes stand for."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from minivllm.config import Component, QuantizationConfig
from minivllm.quantization.base import IntegerScheme, LinearTarget, QuantizationScheme
from minivllm.quantization.weight import round_to_nearest
from minivllm_kernels.int4_linear.reference import int4_linear_reference
from minivllm_kernels.int8_dynamic_linear.reference import int8_dynamic_linear_reference
from minivllm_kernels.int8_linear.reference import int8_linear_reference

NO_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is None
CALIBRATION = {"path": "random", "num_windows": 2, "window_tokens": 8}
KERNELS = ["torch", "numba"]


def _make_scheme(name: str, kernels: str = "torch", **kwargs: Any) -> QuantizationScheme:
    config = QuantizationConfig.named(name, **kwargs)
    target = LinearTarget(kernels=kernels)
    made: QuantizationScheme = config.scheme.make("quantization", QuantizationScheme, target=target)
    return made


def _make(num_rows: int, num_outputs: int, num_inputs: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_rows)
    x = torch.randn(num_rows, num_inputs, generator=generator)
    weight = torch.randn(num_outputs, num_inputs, generator=generator) * 0.05
    return x, weight, torch.randn(num_outputs, generator=generator)


@pytest.mark.parametrize("num_rows", [1, 3, 8, 33])
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("int8_weight_only", {}),
        ("int8_dynamic", {}),
        ("int4", {"group_size": 32}),
        ("int4", {"group_size": 64, "symmetric": True}),
        ("gptq", {"group_size": 32, "calibration": CALIBRATION}),
        ("awq", {"group_size": 64, "calibration": CALIBRATION}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values()))[:12],
)
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_product_is_that_of_the_codes(
    name: str, kwargs: dict[str, Any], kernels: str, num_rows: int, with_bias: bool
) -> None:
    x, weight, bias = _make(num_rows, 48, 192)
    given_bias = bias if with_bias else None
    scheme = _make_scheme(name, kernels, **kwargs)
    assert isinstance(scheme, IntegerScheme)
    codes = scheme.quantize("layers.0.o", weight, x)
    op = scheme.make_linear("layers.0.o", weight, given_bias, x)
    if codes.dynamic:
        wanted = int8_dynamic_linear_reference(x, codes.codes, codes.scales[:, 0], given_bias)
    elif codes.kind == "int8":
        wanted = int8_linear_reference(x, codes.codes, codes.scales, given_bias)
    else:
        wanted = int4_linear_reference(x, codes.codes, codes.scales, codes.zeros, given_bias)
    # torch's packed products round activations and scales to bfloat16: 2^-8 of sums of 192 terms of either sign.
    tolerance = 4e-2 if kernels == "torch" and not codes.dynamic else 2e-5
    torch.testing.assert_close(op(x), wanted, atol=tolerance, rtol=0)
    assert op.look_up is None
    # A code of 4 or 8 bits a weight, and scales and zeros beside.
    limit = {4: 0.30, 8: 0.52}[codes.bits] * 2 * weight.numel() if codes.group_size >= 64 else 0.75 * weight.numel()
    held = op.weight_bytes - (bias.nbytes if with_bias else 0)
    # Panels of the CPU kernels are 32 outputs wide: 48 are 64.
    padding = 64 / 48 if kernels == "numba" else 1.0
    assert held <= limit * padding + 8 * 64


@pytest.mark.parametrize("name", ["int4", "gptq", "awq", "int8_weight_only", "int8_dynamic"])
def test_a_scheme_leaves_the_product_close_to_the_original(name: str) -> None:
    x, weight, _ = _make(64, 96, 128)
    kwargs = {"calibration": CALIBRATION} if name in ("gptq", "awq") else {}
    if name != "int8_weight_only" and name != "int8_dynamic":
        kwargs["group_size"] = 32
    op = _make_scheme(name, **kwargs).make_linear("layers.0.o", weight, None, x)
    wanted = x @ weight.T
    error = (op(x) - wanted).norm() / wanted.norm()
    assert error < (0.012 if name.startswith("int8") else 0.12)


@pytest.mark.skipif(NO_BITSANDBYTES, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("num_rows", [1, 5])
def test_bitsandbytes_products_are_those_of_what_it_stores(num_rows: int) -> None:
    import bitsandbytes.functional as functional

    x, weight, bias = _make(num_rows, 64, 128)
    for double in (False, True):
        op = _make_scheme("nf4", double_quantization=double).make_linear("layers.0.o", weight.clone(), bias)
        codes, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=double)
        wanted = x @ functional.dequantize_4bit(codes, state).T + bias
        # In bfloat16 where the processor multiplies that.
        torch.testing.assert_close(op(x), wanted, atol=2e-2, rtol=0)
        assert op.weight_bytes - bias.nbytes <= 64 * 128 / 2 + (64 * 128 / 64) * (1.1 if double else 4) + 1100
    op = _make_scheme("llm_int8").make_linear("layers.0.o", weight.clone(), bias)
    torch.testing.assert_close(op(x), x @ weight.T + bias, atol=3e-2, rtol=0)
    assert op.weight_bytes == 64 * 128 + 4 * 64 + bias.nbytes


@pytest.mark.parametrize("name", ["nf4", "llm_int8"])
def test_bitsandbytes_does_not_promise_what_it_cannot_keep(name: str) -> None:
    target = LinearTarget(batch_invariant=True)
    with pytest.raises(ValueError, match=rf"^execution\.batch_invariant=true: bitsandbytes' .*={name}\) change with"):
        QuantizationConfig.named(name).scheme.make("quantization", target=target)


def test_bitsandbytes_missing_is_one_line_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        ValueError, match=r"^quantization=nf4: bitsandbytes cannot be imported .*: pip install 'minivllm\["
    ):
        _make_scheme("nf4")


def test_a_group_size_that_does_not_divide_names_layer_value_and_choice() -> None:
    _, weight, _ = _make(1, 8, 96)
    with pytest.raises(ValueError, match=r"^quantization\.group_size=64: does not divide the 96 inputs of layers\.2\."):
        _make_scheme("int4", group_size=64).make_linear("layers.2.down", weight, None)
    with pytest.raises(ValueError, match=r"choose 32, or give it one of its own with quantization\.group_sizes"):
        _make_scheme("int4", group_size=64).make_linear("layers.2.down", weight, None)
    op = _make_scheme("int4", group_size=64, group_sizes={"*.down": 32}).make_linear("layers.2.down", weight, None)
    assert op(torch.ones(1, 96)).shape == (1, 8)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("int4", {"group_size": 48}, r"^quantization\.group_size=48: must be one of 32, 64, 128"),
        ("int4", {"group_sizes": {"*.down": 7}}, r"^quantization\.group_sizes\.\*\.down=7: must be one of 32"),
        ("int4", {"symmetric": "yes"}, r"^quantization\.symmetric='yes': must be true or false"),
        ("int8_dynamic", {"smoothquant_alpha": 1.5}, r"^quantization\.smoothquant_alpha=1\.5: must be in \(0, 1\)"),
        ("int8_dynamic", {"smoothquant_alpha": 0.5}, r"^quantization\.calibration=None: must be given where"),
        ("gptq", {"calibration": CALIBRATION, "damp_fraction": 0}, r"^quantization\.damp_fraction=0: must be above 0"),
        (
            "gptq",
            {"calibration": {"path": "x", "num_windows": 0}},
            r"^quantization\.calibration\.num_windows=0: must",
        ),
        ("fp8", {}, r"^quantization=fp8: a CPU does not multiply 8-bit floats: choose int8_dynamic, or a GPU"),
        ("none", {"weight_dtype": "int8"}, r"^quantization\.weight_dtype='int8': must be null or one of bfloat16, fl"),
        ("none", {"weight_dtype": "float16"}, r"^quantization\.weight_dtype=float16: is for our CPU kernels, and this"),
        pytest.param(
            *("nf4", {"block_size": 63}, r"^quantization\.block_size=63: must be one of 64, 128"),
            marks=pytest.mark.skipif(NO_BITSANDBYTES, reason="bitsandbytes is not installed"),
        ),
    ],
)
def test_a_wrong_option_is_one_line_with_key_and_value(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        _make_scheme(name, **kwargs)
    assert "\n" not in str(caught.value)


def test_an_option_that_a_scheme_does_not_have_is_named() -> None:
    with pytest.raises(ValueError, match=r"^quantization: minivllm\.quantization\.int8_weight_only\.Int8WeightOnly d"):
        _make_scheme("int8_weight_only", group_size=32)


def test_a_scheme_of_a_users_own_plugs_in_by_import_path() -> None:
    scheme = Component(target=f"{__name__}.NoSuchScheme")
    with pytest.raises(ValueError, match=r"^quantization\._target_=.*cannot be imported"):
        scheme.make("quantization", QuantizationScheme, target=LinearTarget())


@pytest.mark.parametrize("name", ["int4", "nf4", "llm_int8"])
def test_a_weight_that_is_quantized_already_is_refused_by_name(name: str) -> None:
    if name != "int4" and NO_BITSANDBYTES:
        pytest.skip("bitsandbytes is not installed")
    weight = round_to_nearest(torch.ones(4, 64), bits=4, group_size=32)
    with pytest.raises(ValueError, match=r"layers\.1\.o comes as int4 from a checkpoint that is quantized already"):
        _make_scheme(name).make_linear("layers.1.o", weight, None)
