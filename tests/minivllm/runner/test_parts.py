"""What is refused before weights are read, because a GPU could not hold them. The GPU's memory is made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_tiny_llama

from minivllm.config import EngineConfig, ModelConfig, QuantizationConfig
from minivllm.models.folder import read_spec
from minivllm.models.llama import tensor_shapes
from minivllm.runner.parts import _check_weights_fit


def _check(monkeypatch: pytest.MonkeyPatch, folder: Path, share: float, **options: Any) -> None:
    """With room for this share of the model in float16."""
    model = ModelConfig(path=str(folder))
    size = 2 * sum(torch.Size(shape).numel() for shape in tensor_shapes(read_spec(model)).values())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(share * size), 2 * size))
    _check_weights_fit(EngineConfig(model=model, **options), torch.float16)


def test_weights_that_do_not_fit_are_one_line_with_a_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny_llama(tmp_path)
    _check(monkeypatch, folder, 1.01)
    with pytest.raises(ValueError, match=r"^model\.path='.*': its weights take .* choose a smaller model, or exec"):
        _check(monkeypatch, folder, 0.99)


def test_weights_in_fewer_bits_are_given_the_room_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny_llama(tmp_path)
    int4 = QuantizationConfig.named("int4")
    _check(monkeypatch, folder, 0.7, quantization=int4)
    # The embedding, the head and a quarter of the rest.
    with pytest.raises(ValueError, match=r"its weights take"):
        _check(monkeypatch, folder, 0.2, quantization=int4)
    file = folder / "config.json"
    with_method = {"quant_method": "gptq", "bits": 4, "group_size": 16}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": with_method}))
    _check(monkeypatch, folder, 0.7)
