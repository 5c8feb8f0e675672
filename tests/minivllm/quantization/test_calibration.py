"""The text that calibrated schemes watch, and what reaches them of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import VOCAB_SIZE, save_tiny_llama
from torch import Tensor

from minivllm.config import ModelConfig
from minivllm.models import Llama, load_model
from minivllm.quantization.base import LinearOp, LinearTarget, QuantizationScheme
from minivllm.quantization.calibration import CalibrationText
from minivllm.quantization.int8_dynamic import Int8Dynamic
from minivllm.quantization.none import OutInLinear
from minivllm.quantization.weight import QuantizedWeight

WINDOWS = CalibrationText(path="random", num_windows=3, window_tokens=11, seed=5)
ASSETS = Path(__file__).resolve().parents[3] / "experiments" / "assets"


class _Watching(QuantizationScheme):
    """Keeps what flows in; scales inputs where asked to, and rounds nothing."""

    calibration = WINDOWS

    def __init__(self, *, scales: bool = False, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(target=LinearTarget(dtype=dtype))
        self.seen: dict[str, Tensor] = {}
        self.scales = scales

    def input_scale(self, name: str, weight: Tensor, x: Tensor) -> Tensor | None:
        assert x.shape[1] == weight.shape[1] and not name.endswith(".o")
        if not self.scales:
            return None
        return torch.rand(weight.shape[1], generator=torch.Generator().manual_seed(len(name))) + 0.5

    def make_linear(
        self, name: str, weight: Tensor | QuantizedWeight, bias: Tensor | None, x: Tensor | None = None
    ) -> LinearOp:
        assert x is not None and isinstance(weight, Tensor)
        self.seen[name] = x.clone()
        return OutInLinear(weight, bias)


def _load(folder: Path, scheme: QuantizationScheme, **more: Any) -> Llama:
    return load_model(ModelConfig(path=str(folder)), device="cpu", dtype="float32", scheme=scheme, **more)


@pytest.mark.parametrize("shape", ["llama", "windowed"])
def test_what_flows_into_each_projection_is_what_transformers_feeds_it(tmp_path: Path, shape: str) -> None:
    from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

    if shape == "llama":
        save_tiny_llama(tmp_path)
    else:
        config = MistralConfig(
            vocab_size=VOCAB_SIZE, hidden_size=48, intermediate_size=56, num_hidden_layers=2, num_attention_heads=6,
            num_key_value_heads=2, head_dim=8, sliding_window=4, initializer_range=0.3, max_position_embeddings=64,
        )  # fmt: skip
        torch.manual_seed(0)
        MistralForCausalLM(config).eval().save_pretrained(tmp_path)
    scheme = _Watching()
    _load(tmp_path, scheme)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    wanted: dict[str, Tensor] = {}
    names = {"qkv": "self_attn.q_proj", "o": "self_attn.o_proj", "gate_up": "mlp.up_proj", "down": "mlp.down_proj"}
    places = {f"layers.{i}.{ours}": f"model.layers.{i}.{hf}" for i in range(2) for ours, hf in names.items()}
    for ours, hf in (places | {"lm_head": "lm_head"}).items():

        def note(module: Any, args: Any, ours: str = ours) -> None:
            wanted[ours] = args[0].detach().flatten(0, 1)

        theirs.get_submodule(hf).register_forward_pre_hook(note)
    with torch.no_grad():
        theirs(WINDOWS.windows(lambda text: [], VOCAB_SIZE))
    assert set(wanted) == set(scheme.seen)
    for name, x in scheme.seen.items():
        torch.testing.assert_close(x, wanted[name], atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scaling_inputs_changes_what_is_rounded_and_not_the_model(tmp_path: Path, dtype: str) -> None:
    save_tiny_llama(tmp_path)
    plain, scaled = (_Watching(scales=scales, dtype=getattr(torch, dtype)) for scales in (False, True))
    models = [
        load_model(ModelConfig(path=str(tmp_path)), device="cpu", dtype=dtype, scheme=scheme)
        for scheme in (plain, scaled)
    ]
    for name in ("layers.0.qkv", "layers.1.down"):
        assert (plain.seen[name] - scaled.seen[name]).abs().max() > 0.1
    o, scaled_o = plain.seen["layers.1.o"], scaled.seen["layers.1.o"]
    assert (o - scaled_o).norm() / o.norm() < (1e-5 if dtype == "float32" else 0.05)
    x = torch.randn(5, 48, generator=torch.Generator().manual_seed(1)).to(models[0].dtype)
    outs = []
    for model in models:
        layer = model.layers[0]
        inner = layer.gate_up(layer.post_norm(x))
        gate, up = inner.chunk(2, dim=1)
        outs.append(layer.down(F.silu(gate) * up).float())
    tolerance = 2e-4 if dtype == "float32" else 0.02
    assert (outs[0] - outs[1]).norm() / outs[0].norm() < tolerance


def test_smoothquant_makes_activations_easier_to_round() -> None:
    x = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    x[:, 9] *= 60
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(1)) * 0.1
    text = {"path": "random"}
    wanted, errors = x @ weight.T, []
    for alpha in (None, 0.5):
        scheme = Int8Dynamic(target=LinearTarget(), smoothquant_alpha=alpha, calibration=text)
        scale = scheme.input_scale("layers.0.qkv", weight, x)
        assert (scale is None) == (alpha is None) == (scheme.calibration is None)
        factor = torch.ones(64) if scale is None else scale
        got = scheme.make_linear("layers.0.qkv", weight * factor, None)(x / factor)
        errors.append(float((got - wanted).norm() / wanted.norm()))
    assert errors[1] < 0.5 * errors[0]


def test_windows_are_spread_over_the_text(tmp_path: Path) -> None:
    file = tmp_path / "text.jsonl"
    file.write_text("".join(json.dumps({"text": part}) + "\n" for part in ("abc", "defg", "hij")))
    text = CalibrationText(path=str(file), num_windows=3, window_tokens=4)
    windows = text.windows(lambda content: [ord(c) for c in content], 128)
    assert ["".join(map(chr, row)) for row in windows.tolist()] == ["abc\n", "defg", "\nhij"]


def test_a_text_shorter_than_its_windows_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("too short")
    text = CalibrationText(path=str(file), num_windows=2, window_tokens=8)
    with pytest.raises(ValueError, match=r"text\.txt': has 9 tokens, and 2 windows of 8 need 16: lower num_windows"):
        text.windows(lambda content: [1] * len(content), 10)
    for path in (tmp_path / "none.txt", tmp_path / "broken.jsonl"):
        if path.suffix == ".jsonl":
            path.write_text('{"txt": 1}\n')
        with pytest.raises(ValueError, match=r"^quantization\.calibration\.path='.*': must be a text file or a \.j"):
            CalibrationText(path=str(path)).windows(lambda content: [], 10)


def test_windows_longer_than_the_model_can_read_are_an_error(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path)
    scheme = _Watching()
    scheme.calibration = CalibrationText(path="random", window_tokens=200)
    with pytest.raises(ValueError, match=r"^quantization\.calibration\.window_tokens=200: must be at most 160, the"):
        _load(tmp_path, scheme)


def test_no_calibration_text_is_held_out() -> None:
    texts = [
        {json.loads(line)["path"] for line in (ASSETS / f"{name}.jsonl").read_text().splitlines()}
        for name in ("calibration", "heldout")
    ]
    assert len(texts[0]) > 10 and not texts[0] & texts[1]
