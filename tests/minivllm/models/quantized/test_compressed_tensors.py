"""Checkpoints in the layouts of compressed-tensors."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import draw_weight, edit_config, edit_tensors, int8_tensors, packed_tensors, write_checkpoint
from torch import Tensor

from minivllm.models.fields import Fields
from minivllm.models.quantized.compressed_tensors import CompressedTensors
from minivllm.quantization.weight import QuantizedWeight

UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"
TOKENS = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True}
GROUPS: dict[str, Any] = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16, "symmetric": True}
ROWS: dict[str, Any] = {"num_bits": 8, "type": "int", "strategy": "channel", "group_size": None, "symmetric": True}


def _group(weights: dict[str, Any], targets: tuple[str, ...] = ("Linear",), **more: Any) -> dict[str, Any]:
    return {"targets": list(targets), "weights": weights, "input_activations": None, "output_activations": None, **more}


def _config(*groups: dict[str, Any], form: str = "pack-quantized", **changes: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {f"group_{i}": group for i, group in enumerate(groups)},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "sparsity_config": {},
        "transform_config": {},
        **changes,
    }


@pytest.fixture
def write(make_small: Callable[..., Any], chance: random.Random, tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """Write a folder: `write(config, how)`, `how` of a module says how to draw its weight, None leaves it out."""

    def write_folder(config: dict[str, Any], how: Callable[[str], dict[str, Any] | None]) -> tuple[Path, Any]:
        def make(module: str, num_outputs: int, num_inputs: int) -> Any:
            own = how(module)
            if own is None:
                return None
            own, form = dict(own), config["format"]
            dtype, index = own.pop("dtype", torch.bfloat16), own.pop("index", False)
            if index:
                own["shuffled"] = random.Random(num_inputs).sample(range(num_inputs), num_inputs)
            weight = draw_weight(chance, num_outputs, num_inputs, **own)
            if form == "int-quantized":
                return weight, int8_tensors(weight, dtype)
            tensors = packed_tensors(weight, symmetric=own.get("symmetric", False), dtype=dtype)
            return weight, tensors | ({"weight_g_idx": torch.tensor(weight.groups).int()} if index else {})

        hf_model = make_small("Qwen3")
        write_checkpoint(hf_model, tmp_path / "m", config, make)
        return tmp_path / "m", hf_model

    return write_folder


@pytest.mark.parametrize(
    ("config", "how"),
    [
        (_config(_group(GROUPS)), {"symmetric": True}),
        (_config(_group({**GROUPS, "symmetric": False})), {"dtype": torch.float16}),
        (_config(_group({**ROWS, "num_bits": 4})), {"symmetric": True, "group_size": None}),
        (_config(_group({"num_bits": 4, "symmetric": False, "group_size": -1})), {"group_size": None}),
        (_config(_group(ROWS)), {"bits": 8, "symmetric": True, "group_size": None, "dtype": torch.float32}),
        (_config(_group({**GROUPS, "num_bits": 8})), {"bits": 8, "symmetric": True}),
        (_config(_group(ROWS), form="int-quantized"), {"bits": 8, "symmetric": True, "group_size": None}),
        (_config(_group({**GROUPS, "actorder": "group"})), {"symmetric": True, "index": True}),
        (_config(_group({**GROUPS, "actorder": "weight"})), {"symmetric": True}),
    ],
    ids=[
        "int4", "int4-zeros", "int4-row", "int4-row-zeros", "int8-row", "int8-groups", "int8-unpacked", "int4-g-idx",
        "int4-by-weight",
    ],
)  # fmt: skip
def test_logits_are_those_of_the_dequantized_weights(
    config: dict[str, Any], how: dict[str, Any], write: Callable[..., Any], logits_error: Callable[..., float]
) -> None:
    folder, hf_model = write(config, lambda module: how)
    rows_of_8_bits = how.get("bits") == 8 and how.get("group_size", 0) is None
    assert logits_error(folder, hf_model, rows_of_8_bits=rows_of_8_bits) < 1e-4


def test_groups_with_targets_of_their_own_and_what_is_ignored(write: Any, take: Any, logits_error: Any) -> None:
    """A name counts more than an expression, and an expression more than the class."""
    fine = {**GROUPS, "group_size": 8}
    config = _config(
        _group({**GROUPS, "symmetric": False}, ("Linear",)),
        _group(fine, ("re:.*mlp.*", "re:.*self_attn.*")),
        _group({**ROWS, "num_bits": 4}, (DOWN,)),
        ignore=["lm_head", "re:.*layers.1.self_attn.*", "model.layers.1.mlp.down_proj"],
    )

    def how(module: str) -> dict[str, Any] | None:
        if module == DOWN:
            return {"symmetric": True, "group_size": None}
        is_left_out = "layers.1.self_attn" in module or module == "model.layers.1.mlp.down_proj"
        return None if is_left_out else {"symmetric": True, "group_size": 8}

    folder, hf_model = write(config, how)
    assert logits_error(folder, hf_model) < 1e-4
    assert take(folder, DOWN).group_size == 80 and take(folder, UP).group_size == 8
    assert isinstance(take(folder, "model.layers.1.mlp.down_proj"), Tensor)


def test_rounded_activations_are_asked_for_and_one_scale_of_all_is_a_scale_of_each_row(
    write: Callable[..., Any], take: Any
) -> None:
    folder, _ = write(
        _config(_group(ROWS, input_activations=TOKENS), form="int-quantized"),
        lambda module: {"bits": 8, "symmetric": True, "group_size": None},
    )
    assert take(folder, UP).dynamic
    per_tensor = _group({**ROWS, "strategy": "tensor"}, input_activations=TOKENS)
    edit_config(folder, quantization_config=_config(per_tensor, form="int-quantized"))
    for shape in ((1,), ()):

        def edit(tensors: dict[str, Tensor], shape: tuple[int, ...] = shape) -> None:
            for name in [name for name in tensors if name.endswith("weight_scale")]:
                tensors[name] = torch.full(shape, 0.125)

        edit_tensors(folder, edit)
        weight = take(folder, UP)
        assert weight.dynamic and weight.scales.tolist() == [[0.125]] * 80


@settings(max_examples=25, deadline=None)
@given(
    num_outputs=st.integers(1, 20),
    group_size=st.integers(1, 9),
    groups=st.integers(1, 3),
    bits_and_symmetric=st.sampled_from([(4, True), (4, False), (8, True)]),
    seed=st.integers(0, 99),
)
def test_codes_scales_and_zeros_are_those_that_were_packed(
    num_outputs: int, group_size: int, groups: int, bits_and_symmetric: tuple[int, bool], seed: int
) -> None:
    """Words need not be full here, in either direction."""
    bits, symmetric = bits_and_symmetric
    shape = (num_outputs, group_size * groups)
    weight = draw_weight(random.Random(seed), *shape, bits=bits, group_size=group_size, symmetric=symmetric)
    tensors = packed_tensors(weight, symmetric=symmetric)
    settings_ = {**GROUPS, "num_bits": bits, "group_size": group_size, "symmetric": symmetric}
    layout = CompressedTensors(Fields(_config(_group(settings_)), "config.json"))
    form = layout.form("m", shape, {})
    assert form is not None
    for suffix, stored in form.tensors.items():
        assert stored.need == "blank" or stored.shape == tuple(tensors[suffix].shape)
    got = layout.read("m", shape, form, tensors.__getitem__)
    offset = 0 if bits == 4 else 128
    assert got.codes.tolist() == [[code - offset for code in row] for row in weight.codes]
    assert (got.zeros is None) if symmetric else (got.zeros is not None and got.zeros.tolist() == weight.zeros)
    assert got.scales.tolist() == weight.scales
    assert torch.equal(got.dequantize(), weight.dense())


def _broken(**changes: Any) -> dict[str, Any]:
    return _config(_group({**GROUPS, **changes}))


_IN = "quantization_config.config_groups.group_0"


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (_config(), "quantization_config.config_groups={}: must be a mapping of one group or more"),
        (
            _config(_group(GROUPS), form="float-quantized"),
            f"{_IN}.format='float-quantized': must be pack-quantized or int",
        ),
        (_broken(num_bits=2), f"{_IN}.weights.num_bits=2: must be 8, or 4"),
        (_config(_group(GROUPS), form="int-quantized"), f"{_IN}.weights.num_bits=4: must be 8"),
        (_broken(type="float"), f"{_IN}.weights.type='float': must be int"),
        (_broken(strategy="block"), f"{_IN}.weights.strategy='block': must be group, channel or tensor"),
        (_broken(group_size=24), "quantization_config.group_size=24: must divide the 80 inputs of " + DOWN),
        (_broken(num_bits=8, symmetric=False), f"{_IN}.weights.symmetric=False: must be true where num_bits=8"),
        (_broken(actorder="other"), f"{_IN}.weights.actorder='other': must be weight, group or absent"),
        (_broken(dynamic=True), f"{_IN}.weights.dynamic=True: must be false"),
        (_config(_group(GROUPS, input_activations=TOKENS)), f"{_IN}.input_activations={TOKENS}: must be absent where"),
        (
            _config(_group(ROWS, input_activations={**TOKENS, "dynamic": False})),
            f"{_IN}.input_activations.dynamic=False: must be true",
        ),
        (
            _config(_group(ROWS, input_activations={**TOKENS, "type": "float"})),
            f"{_IN}.input_activations.type='float': must be int",
        ),
        (_config(_group(GROUPS, ("re:(",))), f"{_IN}.targets has 're:(': must be a regular expression"),
        (_config(_group(GROUPS), ignore="lm_head"), "quantization_config.ignore='lm_head': must be a list of names"),
        (
            _config(_group(GROUPS), kv_cache_scheme={"num_bits": 8}),
            "quantization_config.kv_cache_scheme={'num_bits': 8}:",
        ),
        (
            _config(_group(GROUPS), sparsity_config={"format": "sparse-24-bitmask"}),
            "quantization_config.sparsity_config.format='sparse-24-bitmask': must be dense or absent",
        ),
        (
            _config(_group(GROUPS), transform_config={"a": 1}),
            "quantization_config.transform_config={'a': 1}: must be absent",
        ),
    ],
)
def test_a_setting_that_is_not_supported_is_one_line(
    config: dict[str, Any], complaint: str, make_small: Any, refusal: Callable[[Path], str], tmp_path: Path
) -> None:
    make_small(num_hidden_layers=1).save_pretrained(tmp_path / "m")
    edit_config(tmp_path / "m", quantization_config=config)
    assert refusal(tmp_path / "m").startswith(f"{tmp_path}/m/config.json: {complaint}")


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda t: t.pop(f"{UP}.weight_scale"), f": tensor {UP}.weight_scale is missing: config.json asks for it"),
        (
            lambda t: t[f"{UP}.weight_shape"].fill_(48),
            f": tensor {UP}.weight_shape has values [48, 48]: must be [80, 48] by the rest of the file",
        ),
        (
            lambda t: t.update({f"{UP}.weight_g_idx": torch.zeros(48).int()}),
            f": tensor {UP}.weight_g_idx has no place in the model of config.json",
        ),
        (
            lambda t: t.update({f"{UP}.weight_scale": t[f"{UP}.weight_scale"][:, :1]}),
            f": tensor {UP}.weight_scale has shape [80, 1]: must be [80, 3] by config.json",
        ),
        (
            lambda t: t.update({f"{UP}.weight_zero_point": torch.ones(80, 3).to(torch.int8)}),
            f": tensor {UP}.weight_zero_point is not zero, and the model of config.json has no place for it",
        ),
    ],
    ids=["missing", "other-shape", "index", "scale-shape", "zeros"],
)
def test_a_tensor_that_does_not_fit_is_named(
    edit: Any, complaint: str, write: Callable[..., Any], refusal: Callable[[Path], str]
) -> None:
    folder, _ = write(_config(_group(GROUPS)), lambda module: {"symmetric": True})
    edit_tensors(folder, edit)
    message = refusal(folder)
    assert message.startswith(str(folder)) and complaint in message, message


def test_zeros_that_old_files_have_where_there_are_none_are_fine(write: Callable[..., Any], logits_error: Any) -> None:
    folder, hf_model = write(_config(_group(GROUPS)), lambda module: {"symmetric": True})
    edit_tensors(folder, lambda t: t.update({f"{UP}.weight_zero_point": torch.zeros(80, 3).to(torch.int8)}))
    assert logits_error(folder, hf_model) < 1e-4


def test_a_weight_that_config_says_is_quantized_and_is_not_is_named(
    make_small: Any, refusal: Callable[[Path], str], tmp_path: Path
) -> None:
    make_small(num_hidden_layers=1).save_pretrained(tmp_path / "m")
    edit_config(tmp_path / "m", quantization_config=_config(_group(ROWS), form="int-quantized"))
    edit_tensors(tmp_path / "m", _with_scales)
    assert f"tensor {DOWN.replace('mlp.down', 'self_attn.q')}.weight is stored as F32: must be I8" in refusal(
        tmp_path / "m"
    )


def _with_scales(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        tensors[f"{name}_scale"] = torch.ones(len(tensors[name]), 1)


def test_q_k_and_v_must_be_of_one_form(write: Callable[..., Any], refusal: Callable[[Path], str]) -> None:
    config = _config(_group(GROUPS), _group({**GROUPS, "group_size": 8}, ("re:.*k_proj",)))
    folder, _ = write(config, lambda module: {"symmetric": True, "group_size": 8 if "k_proj" in module else 16})
    assert refusal(folder) == (
        f"{folder}: model.layers.0.self_attn.q_proj is stored as int4, groups of 16, symmetric, float activations and "
        "model.layers.0.self_attn.k_proj as int4, groups of 8, symmetric, float activations: must be alike, as they "
        "are one product here; quantize or leave out both"
    )


def test_a_quantization_of_ours_on_top_is_refused_with_the_way_out(write: Callable[..., Any]) -> None:
    from minivllm.config import ModelConfig
    from minivllm.models import load_model
    from minivllm.quantization.base import LinearTarget
    from minivllm.quantization.int4 import Int4

    folder, _ = write(_config(_group(GROUPS)), lambda module: {"symmetric": True})
    with pytest.raises(
        ValueError, match=r"^quantization: layers\.0\.qkv comes as int4 from .* choose quantization=none"
    ):
        load_model(ModelConfig(path=str(folder)), device="cpu", dtype="float32", scheme=Int4(target=LinearTarget()))


def test_what_is_quantized_is_accounted_for(write: Callable[..., Any], take: Any) -> None:
    from minivllm import LLM

    folder, _ = write(_config(_group(GROUPS)), lambda module: {"symmetric": True})
    llm = LLM(str(folder), kernels="torch", num_threads=1, block_size=4, num_blocks=8)
    memory = llm.engine.memory()
    precision = memory.precision
    weights = [take(folder, UP.replace("mlp.up_proj", name)) for name in _PROJECTIONS]
    assert all(isinstance(weight, QuantizedWeight) for weight in weights)
    assert precision is not None and precision.name == "int4 in the checkpoint"
    assert precision.num_quantized_weights == 2 * sum(weight.shape[0] * weight.shape[1] for weight in weights)
    assert precision.num_quantized_bytes == 2 * sum(
        weight.codes.nbytes // 2 + weight.scales.nbytes for weight in weights
    )
    assert memory.weights_bytes > precision.num_quantized_bytes


_PROJECTIONS = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
