"""Checkpoints in GPTQ's layout."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import packed
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import draw_weight, edit_config, edit_tensors, gptq_tensors, write_checkpoint
from torch import Tensor

from minivllm.models.fields import Fields
from minivllm.models.quantized.gptq import Gptq
from minivllm.quantization.weight import QuantizedWeight

UP = "model.layers.0.mlp.up_proj"


def _config(**changes: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": False, **changes}


@pytest.fixture
def write(
    make_small: Callable[..., Any], chance: random.Random, tmp_path: Path
) -> Callable[..., tuple[Path, Any, Any]]:
    """Write a folder: `write(config, **arguments of draw_weight)` -> (folder, transformers model, weights)."""

    def write_folder(
        config: dict[str, Any], *, version: int = 1, with_index: bool = True, family: str = "Llama", **how: Any
    ) -> tuple[Path, Any, dict[str, packed.Weight]]:
        def make(module: str, num_outputs: int, num_inputs: int) -> Any:
            own = dict(how)
            if own.get("shuffled"):
                # q, k and v see the same inputs, so GPTQ orders them alike.
                own["shuffled"] = random.Random(num_inputs).sample(range(num_inputs), num_inputs)
            weight = draw_weight(chance, num_outputs, num_inputs, **own)
            return weight, gptq_tensors(weight, version=version, with_index=with_index)

        hf_model = make_small(family)
        return tmp_path / "m", hf_model, write_checkpoint(hf_model, tmp_path / "m", config, make)

    return write_folder


@pytest.mark.parametrize(
    ("config", "how"),
    [
        ({}, {}),
        ({"checkpoint_format": "gptq_v2"}, {"version": 2}),
        ({"format": "gptq_v2"}, {"version": 2}),
        ({"group_size": -1}, {"group_size": None}),
        ({"sym": True}, {"symmetric": True}),
        ({"sym": True, "bits": 8}, {"symmetric": True, "bits": 8}),
        ({"sym": True, "bits": 8, "group_size": -1}, {"symmetric": True, "bits": 8, "group_size": None}),
        ({"desc_act": True}, {"shuffled": True}),
        ({"desc_act": True, "sym": True, "bits": 8}, {"shuffled": True, "symmetric": True, "bits": 8}),
        ({}, {"with_index": False}),
        # Version 2 under the name of version 1: there are such files, and symmetric zeros leave no doubt.
        ({"sym": True}, {"symmetric": True, "version": 2}),
    ],
    ids=[
        "asymmetric", "v2", "v2-by-format", "row", "symmetric", "int8-groups", "int8-row", "desc-act", "int8-desc-act",
        "no-g-idx", "v2-as-v1",
    ],
)  # fmt: skip
def test_logits_are_those_of_the_dequantized_weights(
    config: dict[str, Any], how: dict[str, Any], write: Callable[..., Any], logits_error: Callable[..., float]
) -> None:
    folder, hf_model, _ = write(_config(**config), **how)
    rows_of_8_bits = how.get("bits") == 8 and how.get("group_size", 0) is None
    assert logits_error(folder, hf_model, rows_of_8_bits=rows_of_8_bits) < 1e-4


@settings(max_examples=25, deadline=None)
@given(
    words_out=st.integers(1, 3),
    words_in=st.integers(1, 5),
    groups=st.integers(1, 3),
    version=st.sampled_from([1, 2]),
    shuffled=st.booleans(),
    seed=st.integers(0, 99),
)
def test_codes_scales_and_zeros_are_those_that_were_packed(
    words_out: int, words_in: int, groups: int, version: int, shuffled: bool, seed: int
) -> None:
    num_outputs, num_inputs, chance = 8 * words_out, 8 * words_in * groups, random.Random(seed)
    order = chance.sample(range(num_inputs), num_inputs) if shuffled else None
    weight = draw_weight(chance, num_outputs, num_inputs, group_size=8 * words_in, shuffled=order)
    got = _read(weight, version)
    assert torch.equal(got.dequantize(), weight.dense())
    assert got.zeros is not None and got.zeros.tolist() == weight.zeros
    assert got.scales.tolist() == weight.scales
    if got.order is None:
        assert got.codes.tolist() == weight.codes


def test_a_zero_of_0_borrows_from_its_neighbour_in_version_1_and_gets_it_back() -> None:
    weight = draw_weight(random.Random(0), 8, 8, group_size=8)
    for output in (0, 3, 4, 7):
        weight.zeros[output][0] = 0
    for version in (1, 2):
        zeros = _read(weight, version).zeros
        assert zeros is not None and zeros.tolist() == weight.zeros


def _read(weight: packed.Weight, version: int) -> QuantizedWeight:
    config = _config(
        group_size=len(weight.groups) // len(weight.scales[0]), format=f"gptq_v{version}".removesuffix("_v1")
    )
    format_, tensors = Gptq(Fields(config, "config.json")), gptq_tensors(weight, version=version)
    shape = (len(weight.codes), len(weight.groups))
    form = format_.form("m", shape, {f"m.{suffix}": None for suffix in tensors})  # type: ignore[misc]
    assert form is not None
    return format_.read("m", shape, form, tensors.__getitem__)


def test_the_file_says_which_modules_were_left_out(
    make_small: Callable[..., Any], chance: random.Random, tmp_path: Path, logits_error: Any, take: Any
) -> None:
    def make(module: str, num_outputs: int, num_inputs: int) -> Any:
        if "layers.0" in module:
            return None
        weight = draw_weight(chance, num_outputs, num_inputs)
        return weight, gptq_tensors(weight)

    hf_model = make_small()
    write_checkpoint(hf_model, tmp_path / "m", _config(), make)
    assert isinstance(take(tmp_path / "m", UP), Tensor)
    assert isinstance(take(tmp_path / "m", UP.replace("0", "1")), QuantizedWeight)
    assert logits_error(tmp_path / "m", hf_model) < 1e-4


def test_modules_may_have_settings_of_their_own(
    make_small: Callable[..., Any], chance: random.Random, tmp_path: Path, logits_error: Any, take: Any
) -> None:
    def make(module: str, num_outputs: int, num_inputs: int) -> Any:
        if "layers.0.mlp" in module:
            return None
        is_down = module.endswith("down_proj")
        weight = draw_weight(chance, num_outputs, num_inputs, bits=8 if is_down else 4, symmetric=is_down)
        return weight, gptq_tensors(weight)

    hf_model = make_small()
    dynamic = {"-:.*layers\\.0\\.mlp.*": {}, "+:.*down_proj": {"bits": 8, "sym": True}}
    write_checkpoint(hf_model, tmp_path / "m", _config(dynamic=dynamic), make)
    assert take(tmp_path / "m", "model.layers.1.mlp.down_proj").kind == "int8"
    assert logits_error(tmp_path / "m", hf_model) < 1e-4


def test_a_head_may_be_quantized_too(
    make_small: Callable[..., Any], chance: random.Random, tmp_path: Path, logits_error: Any, take: Any
) -> None:
    def make(module: str, num_outputs: int, num_inputs: int) -> Any:
        weight = draw_weight(chance, num_outputs, num_inputs)
        return weight, gptq_tensors(weight)

    hf_model = make_small(vocab_size=104)
    is_head = "lm_head.weight".__eq__
    write_checkpoint(
        hf_model, tmp_path / "m", _config(lm_head=True), make, lambda n: packed.is_projection(n) or is_head(n)
    )
    assert isinstance(take(tmp_path / "m", "lm_head"), QuantizedWeight)
    assert logits_error(tmp_path / "m", hf_model) < 1e-4


def test_biases_that_old_files_have_for_every_projection_are_fine_where_they_are_zero(
    write: Callable[..., Any], refusal: Callable[[Path], str], logits_error: Any
) -> None:
    folder, hf_model, _ = write(_config())
    edit_tensors(folder, lambda t: t.update({f"{UP}.bias": torch.zeros(80).half()}))
    assert logits_error(folder, hf_model) < 1e-4
    edit_tensors(folder, lambda t: t[f"{UP}.bias"].add_(1))
    assert refusal(folder).endswith(f"tensor {UP}.bias is not zero, and the model of config.json has no place for it")


def test_biases_of_the_model_are_kept(write: Callable[..., Any], logits_error: Any) -> None:
    folder, hf_model, _ = write(_config(), family="Qwen2")
    assert logits_error(folder, hf_model) < 1e-4


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"bits": 3}, "quantization_config.bits=3: must be 4 or 8"),
        ({"bits": None}, "quantization_config.bits is missing: must be a whole number"),
        ({"group_size": 0}, "quantization_config.group_size=0: must be a whole number of 1 or more, or -1"),
        (
            {"group_size": 24},
            "quantization_config.group_size=24: must divide the 80 inputs of model.layers.0.mlp.down_proj",
        ),
        ({"bits": 8}, "quantization_config.sym=False: must be true where bits=8"),
        ({"sym": "yes"}, "quantization_config.sym='yes': must be true or false"),
        (
            {"checkpoint_format": "marlin"},
            "quantization_config.checkpoint_format='marlin': must be one of gptq, gptq_v2",
        ),
        ({"pack_dtype": "int16"}, "quantization_config.pack_dtype='int16': must be int32"),
        ({"dynamic": {"+:.*q_proj": {"bits": 2}}}, "quantization_config.dynamic.+:.*q_proj.bits=2: must be 4 or 8"),
        ({"dynamic": {"-:(": {}}}, "quantization_config.dynamic has '-:(': must be a regular expression"),
    ],
)
def test_a_setting_that_is_not_supported_is_one_line(
    changes: dict[str, Any], complaint: str, write: Callable[..., Any], refusal: Callable[[Path], str]
) -> None:
    folder, _, _ = write(_config())
    edit_config(folder, quantization_config=_config(**changes))
    assert refusal(folder).startswith(f"{folder}/config.json: {complaint}")


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda t: t.pop(f"{UP}.qzeros"), f": tensor {UP}.qzeros is missing: config.json asks for it"),
        (
            lambda t: t.update({f"{UP}.qweight": t[f"{UP}.qweight"][:-1]}),
            f": tensor {UP}.qweight has shape [5, 80]: must be [6, 80] by config.json",
        ),
        (
            lambda t: t.update({f"{UP}.qweight": t[f"{UP}.qweight"].long()}),
            f": tensor {UP}.qweight is stored as I64: must be I32",
        ),
        (
            lambda t: t.update({f"{UP}.weight": torch.ones(80, 48)}),
            f": tensor {UP}.weight has no place in the model of config.json",
        ),
        (
            lambda t: t[f"{UP}.scales"].fill_(torch.inf),
            f": tensor {UP}.scales has a scale that is not finite: the file is damaged",
        ),
        (
            lambda t: t[f"{UP}.g_idx"].fill_(0),
            f": tensors model.layers.0.mlp.gate_proj.g_idx and {UP}.g_idx differ: must be equal",
        ),
        (
            lambda t: [t[f"model.layers.0.mlp.{name}_proj.g_idx"].fill_(1) for name in ("up", "gate")],
            ": tensor model.layers.0.mlp.gate_proj.g_idx is no grouping: must name each of 3 groups 16 times",
        ),
        (
            lambda t: [t[f"model.layers.0.mlp.{name}_proj.g_idx"].sub_(1) for name in ("up", "gate")],
            ": tensor model.layers.0.mlp.gate_proj.g_idx is no grouping: must name each of 3 groups 16 times",
        ),
        (
            lambda t: t.update({f"{UP}.weight": torch.ones(80, 48), **_without(t, f"{UP}.")}),
            ": model.layers.0.mlp.gate_proj is stored as int4, groups of 16, asymmetric, float activations, ordered by "
            f"g_idx and {UP} as floats: must be alike, as they are one product here",
        ),
    ],
    ids=[
        "missing", "shape", "dtype", "surplus", "scale", "other-order", "no-grouping", "negative-group", "one-of-two",
    ],
)  # fmt: skip
def test_a_tensor_that_does_not_fit_is_named(
    edit: Any, complaint: str, write: Callable[..., Any], refusal: Callable[[Path], str]
) -> None:
    folder, _, _ = write(_config())
    edit_tensors(folder, edit)
    message = refusal(folder)
    assert message.startswith(str(folder)) and complaint in message, message


def _without(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    for name in [name for name in tensors if name.startswith(prefix)]:
        del tensors[name]
    return {}


def test_zeros_of_symmetric_weights_must_be_the_middle(
    write: Callable[..., Any], refusal: Callable[[Path], str]
) -> None:
    folder, _, _ = write(_config(sym=True), symmetric=True)
    edit_tensors(folder, lambda t: t[f"{UP}.qzeros"].sub_(1))
    message = refusal(folder)
    assert message == (
        f"{folder}/config.json: tensor {UP}.qzeros has values 6 to 7: must be 7 everywhere (or 8) where "
        "quantization_config.sym=true"
    )


def test_sizes_that_do_not_fill_words_are_named(
    make_small: Callable[..., Any], refusal: Callable[[Path], str], tmp_path: Path
) -> None:
    make_small(intermediate_size=50).save_pretrained(tmp_path / "m")
    edit_config(tmp_path / "m", quantization_config=_config(group_size=-1))
    edit_tensors(tmp_path / "m", lambda t: _without(t, "model.layers.0.mlp.gate"))
    assert refusal(tmp_path / "m") == (
        f"{tmp_path}/m/config.json: model.layers.0.mlp.gate_proj has 50 outputs: must be a multiple of 8, as many as a "
        "word of gptq holds in 4 bits"
    )


def test_groups_that_kernels_do_not_compute_are_refused_by_projection(write: Callable[..., Any]) -> None:
    from minivllm import LLM

    folder, _, _ = write(_config())
    with pytest.raises(ValueError) as caught:
        LLM(str(folder), kernels="numba")
    message = str(caught.value)
    assert message.startswith(
        "model.path: layers.0.qkv is int4 in groups of 16 in its checkpoint, which execution.kernels"
    )
    assert message.endswith("choose execution.kernels=torch") and "\n" not in message
