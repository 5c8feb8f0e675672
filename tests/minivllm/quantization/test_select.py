"""Which projection is quantized, and the account of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import save_tiny_llama

from minivllm import LLM
from minivllm.config import QuantizationConfig
from minivllm.quantization.base import LinearTarget
from minivllm.quantization.int4 import Int4
from minivllm.quantization.none import InOutLinear, Unquantized
from minivllm.quantization.select import Selection


def _make(skip: tuple[str, ...]) -> Selection:
    return Selection(Int4(target=LinearTarget(), group_size=32), skip, num_layers=3)


@pytest.mark.parametrize(
    ("skip", "skipped"),
    [
        ((), set()),
        (("lm_head",), {"lm_head"}),
        (("first", "last"), {f"layers.{i}.{part}" for i in (0, 2) for part in ("qkv", "o", "gate_up", "down")}),
        (("*.down", "layers.1.o"), {"layers.0.down", "layers.1.down", "layers.2.down", "layers.1.o"}),
    ],
)
def test_patterns_and_words_leave_projections_as_they_are(skip: tuple[str, ...], skipped: set[str]) -> None:
    selection = _make(skip)
    names = [f"layers.{i}.{part}" for i in range(3) for part in ("qkv", "o", "gate_up", "down")] + ["lm_head"]
    assert {name for name in names if isinstance(selection.of(name), Unquantized)} == skipped


def test_a_pattern_that_names_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^quantization\.skip='\*\.q_proj': names no projection: there are layers"):
        _make(("*.q_proj",))
    with pytest.raises(ValueError, match=r"^quantization\.skip='lm_head': must be a list of names or patterns"):
        QuantizationConfig(skip="lm_head")  # type: ignore[arg-type]


def test_the_account_counts_what_was_quantized_without_biases() -> None:
    selection = _make(("*.down",))
    weight, bias = torch.randn(8, 64), torch.randn(8)
    selection.make_linear("layers.0.qkv", weight, bias)
    assert isinstance(selection.make_linear("layers.0.down", weight, None), InOutLinear)
    precision = selection.precision()
    assert precision.name == "int4" and precision.num_quantized_weights == precision.num_weights == 512
    # Half a byte a weight, and for 16 groups a scale of two bytes and a zero of one.
    assert precision.num_quantized_bytes == 256 + 16 * 3
    assert precision.bits_per_weight == 8 * (256 + 48) / 512


def test_a_model_and_its_memory_report_say_what_was_quantized(tmp_path: Path) -> None:
    folder = str(save_tiny_llama(tmp_path, hidden_size=64, intermediate_size=96, num_attention_heads=8))
    full = LLM(folder, kernels="torch").engine.memory()
    assert full.precision is not None and full.precision.name == "none" and full.precision.bits_per_weight == 32
    assert full.precision.num_quantized_weights == full.precision.num_quantized_bytes == 0
    some = QuantizationConfig.named("int8_weight_only", skip=("lm_head", "first"))
    memory = LLM(folder, kernels="torch", quantization=some).engine.memory()
    projections = 64 * (64 + 2 * 2 * 8) + 64 * 64 + 3 * 64 * 96
    precision = memory.precision
    assert precision is not None and precision.num_quantized_weights == projections
    assert projections < precision.num_quantized_bytes < 1.05 * projections
    assert full.weights_bytes - memory.weights_bytes == 4 * projections - precision.num_quantized_bytes


def test_a_schemes_name_is_enough_in_python(tmp_path: Path) -> None:
    folder = str(save_tiny_llama(tmp_path, hidden_size=64, intermediate_size=96, num_attention_heads=8))
    quantization = QuantizationConfig.named("int4", group_size=32)
    tokens = LLM(folder, quantization=quantization).generate({"prompt_token_ids": [3, 4, 5]})[0].outputs[0].token_ids
    assert len(tokens) == 16
    assert LLM(folder, quantization="int8_dynamic").config.lossy_parts == ("quantization",)
    assert LLM(folder).config.lossy_parts == ()
    with pytest.raises(ValueError, match=r"^quantization\._target_='minivllm\.quantization\.int5\.Int5': cannot be"):
        LLM(folder, quantization="int5")
    with pytest.raises(ValueError, match=r"^quantization=4: must be the name of a scheme or a QuantizationConfig"):
        LLM(folder, quantization=4)
