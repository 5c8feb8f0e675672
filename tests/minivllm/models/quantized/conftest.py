"""What every format's tests do: load a folder, take one weight, compare logits, read a refusal."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import packed
import pytest
import torch
from torch import Tensor

from minivllm.config import ModelConfig
from minivllm.models import Llama, load_model
from minivllm.models.folder import read_spec
from minivllm.models.loader import open_checkpoint
from minivllm.quantization.base import LinearTarget
from minivllm.quantization.none import Unquantized
from minivllm.quantization.weight import QuantizedWeight


@pytest.fixture
def chance() -> random.Random:
    return random.Random(5)


@pytest.fixture
def make_small(make_hf_model: Callable[..., Any]) -> Callable[..., Any]:
    """A transformers model of sizes that every format can hold."""

    def make(family: str = "Llama", **overrides: Any) -> Any:
        return make_hf_model(family, **{**packed.SMALL, **overrides})

    return make


@pytest.fixture
def take() -> Callable[[Path, str], Tensor | QuantizedWeight]:
    """One weight of a folder."""

    def take_weight(folder: Path, module: str) -> Tensor | QuantizedWeight:
        spec = read_spec(ModelConfig(path=str(folder)))
        return open_checkpoint(folder, spec, device="cpu", dtype=torch.float32).take_weight(f"{module}.weight")

    return take_weight


@pytest.fixture
def logits_error(make_dense_attend: Any) -> Callable[..., float]:
    """The largest difference of logits to those of a transformers model, over their standard deviation.

    Computed in float32: by PyTorch, whose product of 8-bit rows alone rounds activations, and those by our own kernel.
    """

    def error(folder: Path, hf_model: Any, *, rows_of_8_bits: bool = False) -> float:
        model = load_small(folder, "numba" if rows_of_8_bits else "torch")
        token_ids = torch.arange(11) * 7 % 97
        with torch.inference_mode():
            got = model.compute_logits(model.forward(token_ids, torch.arange(11), make_dense_attend(model.spec, [11])))
            wanted = hf_model(token_ids[None]).logits[0]
        return float((got - wanted).abs().max() / wanted.std())

    return error


def load_small(folder: Path, kernels: str = "torch") -> Llama:
    scheme = Unquantized(target=LinearTarget(kernels=kernels))
    return load_model(ModelConfig(path=str(folder)), device="cpu", dtype="float32", scheme=scheme)


@pytest.fixture
def refusal() -> Callable[[Path], str]:
    """The one line of a folder that cannot be loaded."""

    def message(folder: Path) -> str:
        with pytest.raises(ValueError) as caught:
            load_small(folder)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return message
