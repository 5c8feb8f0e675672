"""The decoder against transformers, layer by layer, on ragged packed batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from minivllm.config import KERNELS
from minivllm.layers.base import Rotary
from minivllm.models import Llama
from minivllm.quantization.none import Unquantized

TOLERANCE = 1e-4
# Beyond `original_max_position_embeddings` below, and one prompt of a single token.
LENGTHS = (33, 1, 90, 7)

ROPES = {
    "default": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 1000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32},
    "yarn-mscale": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 4.0,
        "beta_slow": 0.5,
        "mscale": 1.2,
        "mscale_all_dim": 0.7,
        "truncate": False,
    },
    "yarn-attention-factor": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "attention_factor": 0.8,
    },
}

CASES = {
    **{f"llama-{name}": ("Llama", {"rope_parameters": rope}) for name, rope in ROPES.items()},
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-attention-bias": ("Llama", {"attention_bias": True}),
    "llama-H4-KV4": ("Llama", {"num_key_value_heads": 4}),
    "llama-H4-KV1": ("Llama", {"num_key_value_heads": 1}),
    "llama-D12": ("Llama", {"head_dim": None}),
    "mistral-window": ("Mistral", {"sliding_window": 11}),
    "mistral-no-window": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"head_dim": 12}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {}),
    "qwen3-bias-tied": ("Qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
    "qwen3-window": (
        "Qwen3",
        {
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
}


def _make_batch(lengths: tuple[int, ...], vocab_size: int = 97) -> tuple[Tensor, Tensor]:
    token_ids = torch.randint(0, vocab_size, (sum(lengths),), generator=torch.Generator().manual_seed(3))
    return token_ids, torch.cat([torch.arange(length) for length in lengths])


def _run(model: Llama, lengths: tuple[int, ...], make_dense_attend: Callable[..., Any]) -> tuple[list[Tensor], Tensor]:
    """Hidden states after each layer (the last one after the final norm), and logits."""
    token_ids, positions = _make_batch(lengths)
    layers: list[Tensor] = []

    def on_layer(layer: int, hidden: Tensor) -> None:
        assert layer == len(layers)
        layers.append(hidden)

    with torch.inference_mode():
        hidden = model.forward(token_ids, positions, make_dense_attend(model.spec, lengths), on_layer)
        return [*layers[:-1], hidden], model.compute_logits(hidden)


def _run_hf(model: Any, lengths: tuple[int, ...]) -> tuple[list[Tensor], Tensor]:
    """The same from transformers, one prompt at a time."""
    token_ids, _ = _make_batch(lengths)
    outputs = []
    with torch.inference_mode():
        for prompt in token_ids.split(lengths):
            outputs.append(model(prompt[None], output_hidden_states=True, use_cache=False))
    layers = zip(*(output.hidden_states[1:] for output in outputs), strict=True)
    return [torch.cat([h[0] for h in layer]) for layer in layers], torch.cat([output.logits[0] for output in outputs])


def _assert_close(ours: tuple[list[Tensor], Tensor], theirs: tuple[list[Tensor], Tensor], tolerance: float) -> None:
    assert len(ours[0]) == len(theirs[0])
    for layer, (hidden, hf_hidden) in enumerate(zip(ours[0], theirs[0], strict=True)):
        torch.testing.assert_close(hidden, hf_hidden, atol=tolerance, rtol=0, msg=lambda m, i=layer: f"layer {i}: {m}")
    torch.testing.assert_close(ours[1], theirs[1], atol=tolerance, rtol=0)


@pytest.mark.parametrize(("family", "overrides"), CASES.values(), ids=CASES.keys())
def test_every_layer_and_the_logits_match_transformers(
    family: str,
    overrides: dict[str, Any],
    make_hf_model: Callable[..., Any],
    load: Callable[..., Llama],
    make_dense_attend: Callable[..., Any],
    tmp_path: Path,
) -> None:
    hf_model = make_hf_model(family, **overrides)
    hf_model.save_pretrained(tmp_path)
    theirs = _run_hf(hf_model, LENGTHS)
    assert theirs[1].abs().max() > 1, "logits this small would hide an error"
    for kernels in KERNELS:
        _assert_close(_run(load(tmp_path, kernels=kernels), LENGTHS, make_dense_attend), theirs, TOLERANCE)


def test_a_window_and_a_scaling_change_the_logits(
    make_hf_model: Callable[..., Any],
) -> None:
    """The cases above can tell a setting that is ignored from one that works."""
    plain = _run_hf(make_hf_model("Llama"), LENGTHS)[1]
    for overrides in ({"rope_parameters": rope} for name, rope in ROPES.items() if name != "default"):
        assert (_run_hf(make_hf_model("Llama", **overrides), LENGTHS)[1] - plain).abs().max() > 100 * TOLERANCE
    assert (_run_hf(make_hf_model("Mistral", sliding_window=11), LENGTHS)[1] - plain).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_half_precision_follows_transformers_within_its_rounding(
    family: str,
    dtype: str,
    make_hf_model: Callable[..., Any],
    load: Callable[..., Llama],
    make_dense_attend: Callable[..., Any],
    tmp_path: Path,
) -> None:
    lengths = (20, 5)
    hf_model = make_hf_model(family)
    exact = _run_hf(hf_model, lengths)[1]
    hf_model.to(getattr(torch, dtype)).save_pretrained(tmp_path)
    # Read back, as `.to` has rounded the rotary frequencies too.
    hf_model = type(hf_model).from_pretrained(tmp_path, dtype=getattr(torch, dtype), attn_implementation="eager")
    theirs = _run_hf(hf_model, lengths)[1].float()
    ours = _run(load(tmp_path, dtype=dtype), lengths, make_dense_attend)[1]
    assert ours.dtype == getattr(torch, dtype)
    # Against the exact logits we may be off by what transformers is off by, and half as much again.
    assert (ours.float() - exact).abs().mean() < 1.5 * (theirs - exact).abs().mean()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layout", ["in_out", "out_in"])
def test_the_layout_of_weights_changes_neither_logits_nor_bytes(
    layout: str,
    tied: bool,
    save_hf_model: Callable[..., Path],
    load: Callable[..., Llama],
    make_dense_attend: Callable[..., Any],
) -> None:
    folder = save_hf_model("Llama", tie_word_embeddings=tied)
    base = load(folder)
    other = load(folder, scheme=Unquantized(layout))
    _assert_close(_run(other, (9, 4), make_dense_attend), _run(base, (9, 4), make_dense_attend), 1e-5)
    qkv, o, mlp = 48 * 24 * (4 + 2 + 2), 48 * 24 * 4, 3 * 48 * 76
    num_elements = 97 * 48 * (1 if tied else 2) + 2 * (qkv + o + mlp + 2 * 48) + 48
    assert base.weights_bytes == other.weights_bytes == 4 * num_elements


@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_keys_and_values_of_a_token_are_neighbours(
    family: str, save_hf_model: Callable[..., Path], load: Callable[..., Llama]
) -> None:
    """A backend may write both at once, and may rely on one contiguous buffer."""
    seen = []

    def attend(qkv: Tensor, layer: int, rotary: Rotary, at: Any) -> Tensor:
        rotary.rotate_(qkv, at)
        seen.append(layer)
        assert qkv.shape == (5, (4 + 2 + 2) * 24) and qkv.is_contiguous()
        return qkv[:, : 4 * 24]

    load(save_hf_model(family)).forward(torch.arange(5), torch.arange(5), attend)
    assert seen == [0, 1]


def test_a_request_does_not_see_what_shares_its_batch(
    save_hf_model: Callable[..., Path], load: Callable[..., Llama], make_dense_attend: Callable[..., Any]
) -> None:
    model = load(save_hf_model("Qwen3"))
    together = _run(model, (6, 13), make_dense_attend)[1][:6]
    alone = _run(model, (6,), make_dense_attend)[1]
    # The batch of 19 begins with other tokens than the batch of 6 unless both draw from one stream.
    assert torch.equal(_make_batch((6, 13))[0][:6], _make_batch((6,))[0])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
