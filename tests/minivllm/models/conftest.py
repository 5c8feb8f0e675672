"""Tiny Hugging Face checkpoints, and an attention that is slow and obvious."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from minivllm.config import ModelConfig
from minivllm.layers.base import Rotary
from minivllm.models import Attend, Llama, load_model
from minivllm.quantization.base import LinearTarget
from minivllm.quantization.none import Unquantized
from minivllm.runner.kernels import make_ops

# Odd on purpose: head_dim is not hidden_size / heads, and nothing but the heads is a power of two.
TINY = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 76,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def _make_dense_attend(spec: Any, lengths: Sequence[int]) -> Attend:
    """Causal attention over packed prompts, one request, one query and one head at a time."""
    starts = [sum(lengths[:i]) for i in range(len(lengths))]

    def attend(qkv: Tensor, layer: int, rotary: Rotary, at: Any) -> Tensor:
        rotary.rotate_(qkv, at)
        sizes = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
        q_NHD, k_NKD, v_NKD = qkv.view(len(qkv), -1, spec.head_dim).split(sizes, dim=1)
        out = torch.full_like(q_NHD, float("nan"), memory_format=torch.contiguous_format)
        group = q_NHD.shape[1] // k_NKD.shape[1]
        window = spec.sliding_windows[layer]
        for start, length in zip(starts, lengths, strict=True):
            for i in range(length):
                first = 0 if window is None else max(0, i - window + 1)
                keys = slice(start + first, start + i + 1)
                for head in range(q_NHD.shape[1]):
                    scores = k_NKD[keys, head // group] @ q_NHD[start + i, head] * spec.head_dim**-0.5
                    out[start + i, head] = scores.float().softmax(0).to(out.dtype) @ v_NKD[keys, head // group]
        return out.flatten(1)

    return attend


@pytest.fixture
def make_dense_attend() -> Callable[..., Attend]:
    return _make_dense_attend


@pytest.fixture
def make_hf_model() -> Callable[..., Any]:
    """Build a transformers model: `make_hf_model("Llama", **config overrides)`."""

    def make(family: str, **overrides: Any) -> Any:
        import transformers

        config = getattr(transformers, f"{family}Config")(**{**TINY, **overrides})
        # "eager": the definition, without a fused kernel's own rounding.
        config._attn_implementation = "eager"
        model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
        generator = torch.Generator().manual_seed(7)
        # The usual initialisation hides mistakes: norms of one, biases of zero, attention that is nearly uniform.
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                parameter.data = 1 + 0.3 * noise
            elif name.endswith(".bias"):
                parameter.data = 0.5 * noise
            else:
                parameter.data = noise * (0.5 if "embed" in name else 1.5 * parameter.shape[1] ** -0.5)
        return model

    return make


@pytest.fixture
def save_hf_model(make_hf_model: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    """Build and save one: `save_hf_model("Llama", dtype=..., max_shard_size=..., **config overrides)`."""

    def save(
        family: str = "Llama", *, dtype: torch.dtype = torch.float32, max_shard_size: str = "1GB", **overrides: Any
    ) -> Path:
        folder = tmp_path / "model"
        make_hf_model(family, **overrides).to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
        return folder

    return save


@pytest.fixture
def load() -> Callable[..., Llama]:
    """Load a folder on the CPU."""

    def load_folder(
        folder: Path, *, dtype: str = "float32", scheme: Any = None, kernels: str = "torch", **config: Any
    ) -> Llama:
        scheme = Unquantized(target=LinearTarget(kernels=kernels)) if scheme is None else scheme
        model, ops = ModelConfig(path=str(folder), **config), make_ops(kernels)
        return load_model(model, device="cpu", dtype=dtype, scheme=scheme, ops=ops)

    return load_folder
