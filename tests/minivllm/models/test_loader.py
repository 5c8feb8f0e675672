from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from minivllm.config import ModelConfig
from minivllm.layers.base import Rotary
from minivllm.models import Llama, load_model, read_spec
from minivllm.models.llama import tensor_shapes
from minivllm.quantization.base import LinearOp, LinearTarget, QuantizationScheme
from minivllm.quantization.none import OutInLinear, Unquantized
from minivllm.quantization.weight import QuantizedWeight

SHAPE = {
    "model_type": "qwen3",
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 76,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 24,
    "max_position_embeddings": 40,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.1,
    "dtype": "bfloat16",
}


class _RecordingScheme(QuantizationScheme):
    """Keeps what it is given, and says that the head is packed."""

    def __init__(self) -> None:
        super().__init__(target=LinearTarget())
        self.given: dict[str, tuple[tuple[int, ...], bool]] = {}

    def make_linear(
        self, name: str, weight: Tensor | QuantizedWeight, bias: Tensor | None, x: Tensor | None = None
    ) -> LinearOp:
        assert isinstance(weight, Tensor)
        self.given[name] = (tuple(weight.shape), bias is not None)
        return _Packed(weight, bias) if name == "lm_head" else OutInLinear(weight, bias)


class _Packed(OutInLinear):
    @property
    def look_up(self) -> None:  # type: ignore[override]
        return None

    @property
    def weight_bytes(self) -> int:
        return 1000


def _make_random(scheme: Any = None, dtype: str = "float32", seed: int = 0, **shape: Any) -> Llama:
    config = ModelConfig(weights="random", shape={**SHAPE, **shape}, seed=seed)
    return load_model(config, device="cpu", dtype=dtype, scheme=scheme or Unquantized())


def _logits(model: Llama) -> Tensor:
    spec = model.spec

    def attend(qkv: Tensor, layer: int, rotary: Rotary, at: Any) -> Tensor:
        rotary.rotate_(qkv, at)
        v = qkv.view(len(qkv), -1, spec.head_dim)[:, spec.num_heads + spec.num_kv_heads :]
        return v.repeat_interleave(spec.num_heads // spec.num_kv_heads, 1).flatten(1)

    with torch.inference_mode():
        return model.compute_logits(model.forward(torch.arange(5), torch.arange(5), attend))


def test_random_weights_follow_their_seed_alone() -> None:
    base = _logits(_make_random())
    torch.manual_seed(123)
    assert torch.equal(base, _logits(_make_random()))
    assert not torch.equal(base, _logits(_make_random(seed=1)))


def test_random_tensors_differ_and_have_the_wanted_spread() -> None:
    first, second = _make_random().layers
    weights = [op.weight for op in (first.qkv, second.qkv, first.gate_up, second.gate_up)]
    for weight in weights:
        assert weight.std() == pytest.approx(0.1, rel=0.1)
        assert weight.mean() == pytest.approx(0.0, abs=0.01)
    assert not torch.equal(weights[0], weights[1])
    assert (first.input_norm.weight == 1).all()


def test_a_scheme_is_given_fused_projections_by_name() -> None:
    scheme = _RecordingScheme()
    _make_random(scheme, model_type="llama", attention_bias=True)
    assert scheme.given == {
        "layers.0.qkv": ((144, 48), True),
        "layers.0.o": ((48, 96), True),
        "layers.0.gate_up": ((152, 48), False),
        "layers.0.down": ((48, 76), False),
        "layers.1.qkv": ((144, 48), True),
        "layers.1.o": ((48, 96), True),
        "layers.1.gate_up": ((152, 48), False),
        "layers.1.down": ((48, 76), False),
        "lm_head": ((97, 48), False),
    }


def test_a_tied_embedding_is_kept_where_the_head_is_packed() -> None:
    dense, packed = _make_random(tie_word_embeddings=True), _make_random(_RecordingScheme(), tie_word_embeddings=True)
    torch.testing.assert_close(_logits(packed), _logits(dense), atol=1e-5, rtol=0)
    # The packed head comes on top of the embedding.
    assert packed.weights_bytes == dense.weights_bytes + 1000


def test_bytes_count_every_tensor_once() -> None:
    model = _make_random(model_type="llama", dtype="bfloat16")
    shapes = tensor_shapes(model.spec)
    assert model.weights_bytes == 2 * sum(torch.Size(shape).numel() for shape in shapes.values())


def test_an_unknown_dtype_is_named() -> None:
    with pytest.raises(ValueError, match=r"^execution\.dtype='int8': must be auto or one of float32,"):
        _make_random(dtype="int8")


def test_a_length_beyond_the_context_is_refused_before_loading() -> None:
    config = ModelConfig(weights="random", shape=SHAPE, max_model_len=41)
    with pytest.raises(ValueError, match=r"^model\.max_model_len=41: must be at most 40"):
        load_model(config, device="cpu", dtype="float32", scheme=Unquantized())


def test_no_weight_needs_a_gradient_and_all_can_be_trained_against() -> None:
    model = _make_random()
    weight = model.layers[0].o.weight
    assert not weight.requires_grad
    assert not weight.is_inference()
    assert read_spec(ModelConfig(weights="random", shape=SHAPE)) == model.spec
