"""What is refused before weights are read, because a GPU could not hold them (its memory is made up), and what host
memory holds of blocks that are swapped out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from draft_heads import save_eagle
from tiny import save_tiny_llama

from minivllm.config import (
    CacheConfig,
    EngineConfig,
    ModelConfig,
    PreemptionConfig,
    QuantizationConfig,
    SpeculationConfig,
)
from minivllm.models.folder import read_spec
from minivllm.models.llama import tensor_shapes
from minivllm.runner.parts import Parts, _check_weights_fit, make_parts


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


def _make_parts(folder: Path, **options: Any) -> Parts:
    cache = CacheConfig(num_blocks=5, block_size=4)
    return make_parts(EngineConfig(model=ModelConfig(path=str(folder)), cache=cache, **options), "torch")


def test_host_memory_has_room_for_all_that_is_kept_of_a_block(tmp_path: Path) -> None:
    """K/V of the target and of its drafter, features, and whether the drafter has read it."""
    folder = save_tiny_llama(tmp_path / "target")
    heads = save_eagle(tmp_path / "eagle", folder)
    eagle = SpeculationConfig.named("eagle", path=str(heads))
    plain, swapping = PreemptionConfig(), PreemptionConfig.named("swap", num_swap_blocks=3)
    block_bytes = [
        _make_parts(folder, speculation=s).memory().kv_cache_bytes // 5 for s in (SpeculationConfig(), eagle)
    ]
    assert block_bytes[1] > block_bytes[0]
    assert _make_parts(folder, preemption=plain).moves.host_bytes == 0
    assert _make_parts(folder, preemption=swapping).moves.host_bytes == 3 * block_bytes[0]
    parts = _make_parts(folder, preemption=swapping, speculation=eagle)
    assert parts.num_swap_blocks == 3 and parts.moves.host_bytes == 3 * (block_bytes[1] + 1)
    by_bytes = PreemptionConfig.named("swap", swap_bytes=2 * block_bytes[0] + 1)
    assert _make_parts(folder, preemption=by_bytes).num_swap_blocks == 2
    too_few = PreemptionConfig.named("swap", swap_bytes=block_bytes[0] - 1)
    with pytest.raises(
        ValueError, match=rf"^preemption\.swap_bytes=\d+: must hold one block of 4 tokens, {block_bytes[0]} "
    ):
        _make_parts(folder, preemption=too_few)
