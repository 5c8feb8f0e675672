"""Checkpoints in AWQ's layout."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import awq_tensors, draw_weight, edit_config, edit_tensors, write_checkpoint
from torch import Tensor

from minivllm.models.fields import Fields
from minivllm.models.quantized.awq import Awq
from minivllm.quantization.weight import QuantizedWeight

UP = "model.layers.0.mlp.up_proj"


def _config(**changes: Any) -> dict[str, Any]:
    return {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True, "version": "gemm", **changes}


@pytest.fixture
def write(make_small: Callable[..., Any], chance: random.Random, tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """Write a folder: `write(config, group_size=..., left_out=part of a name)` -> (folder, transformers model)."""

    def write_folder(config: dict[str, Any], *, group_size: int | None = 16, left_out: str = "?") -> tuple[Path, Any]:
        def make(module: str, num_outputs: int, num_inputs: int) -> Any:
            if left_out in module:
                return None
            weight = draw_weight(chance, num_outputs, num_inputs, group_size=group_size)
            return weight, awq_tensors(weight)

        hf_model = make_small("Qwen2")
        write_checkpoint(hf_model, tmp_path / "m", config, make)
        return tmp_path / "m", hf_model

    return write_folder


@pytest.mark.parametrize(
    ("config", "how"),
    [
        (_config(), {}),
        (_config(version="GEMM", modules_to_not_convert=["down_proj"]), {"left_out": "down_proj"}),
        (_config(group_size=-1), {"group_size": None}),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 16}, {}),
    ],
    ids=["groups", "left-out", "row", "other-names"],
)
def test_logits_are_those_of_the_dequantized_weights(
    config: dict[str, Any], how: dict[str, Any], write: Callable[..., Any], logits_error: Callable[[Path, Any], float]
) -> None:
    folder, hf_model = write(config, **how)
    assert logits_error(folder, hf_model) < 1e-4


@settings(max_examples=25, deadline=None)
@given(words=st.integers(1, 4), group_size=st.integers(1, 9), groups=st.integers(1, 3), seed=st.integers(0, 99))
def test_codes_scales_and_zeros_are_those_that_were_packed(words: int, group_size: int, groups: int, seed: int) -> None:
    weight = draw_weight(random.Random(seed), 8 * words, group_size * groups, group_size=group_size)
    weight.zeros[0][0] = 0
    tensors, shape = awq_tensors(weight), (8 * words, group_size * groups)
    awq = Awq(Fields(_config(group_size=group_size), "config.json"))
    form = awq.form("m", shape, {})
    assert form is not None
    got = awq.read("m", shape, form, tensors.__getitem__)
    assert got.zeros is not None
    assert (got.codes.tolist(), got.zeros.tolist(), got.scales.tolist()) == (weight.codes, weight.zeros, weight.scales)
    assert torch.equal(got.dequantize(), weight.dense())


def test_a_head_is_never_quantized_and_others_are_where_the_file_says_so(write: Callable[..., Any], take: Any) -> None:
    folder, _ = write(_config(), left_out="layers.1.mlp")
    assert isinstance(take(folder, "lm_head"), Tensor)
    assert isinstance(take(folder, UP), QuantizedWeight)
    assert isinstance(take(folder, UP.replace("0", "1")), Tensor)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"bits": 3}, "quantization_config.bits=3: must be 4"),
        ({"group_size": "16"}, "quantization_config.group_size='16': must be a whole number"),
        ({"group_size": 24}, "quantization_config.group_size=24: must divide the 80 inputs of model.layers.0.mlp.down"),
        ({"zero_point": False}, "quantization_config.zero_point=False: must be true"),
        ({"version": "gemv"}, "quantization_config.version='gemv': must be gemm"),
        ({"version": None, "format": "llm-awq"}, "quantization_config.format='llm-awq': must be gemm"),
    ],
)
def test_a_setting_that_is_not_supported_is_one_line(
    changes: dict[str, Any], complaint: str, write: Callable[..., Any], refusal: Callable[[Path], str]
) -> None:
    folder, _ = write(_config())
    edit_config(folder, quantization_config=_config(**changes))
    assert refusal(folder).startswith(f"{folder}/config.json: {complaint}")


def test_tensors_that_do_not_fit_are_named(write: Callable[..., Any], refusal: Callable[[Path], str]) -> None:
    folder, _ = write(_config())
    edit_tensors(folder, lambda t: t.update({f"{UP}.qzeros": t[f"{UP}.qzeros"][:2]}))
    assert f"tensor {UP}.qzeros has shape [2, 10]: must be [3, 10] by config.json" in refusal(folder)
    edit_tensors(folder, lambda t: t.pop(f"{UP}.qzeros"))
    assert f"tensor {UP}.qzeros is missing: config.json asks for it" in refusal(folder)
