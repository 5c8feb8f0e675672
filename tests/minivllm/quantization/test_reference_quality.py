"""What each way to four bits costs on a trained model: calibration pays, at small and at large groups."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from minivllm import LLM
from minivllm.config import QuantizationConfig

ASSETS = Path(__file__).resolve().parents[3] / "experiments" / "assets"
CALIBRATION = {"path": str(ASSETS / "calibration.jsonl"), "num_windows": 12, "window_tokens": 256}
NUM_WINDOWS, WINDOW = 8, 192


def _logprobs(**options: Any) -> Tensor:
    """[W * N, V] of windows of the held-out text."""
    llm = LLM(str(ASSETS / "reference-target"), max_num_batched_tokens=WINDOW, max_num_seqs=1, num_blocks=16, **options)
    documents = (ASSETS / "heldout.jsonl").read_text().splitlines()[:NUM_WINDOWS]
    texts = [llm.tokenizer.encode(json.loads(line)["text"][:2000]) for line in documents]
    return torch.cat([llm.score(ids[:WINDOW]) for ids in texts]).log_softmax(dim=-1)


@pytest.fixture(scope="module")
def unquantized() -> Tensor:
    return _logprobs()


def _kl(unquantized: Tensor, name: str, **kwargs: Any) -> float:
    """Mean nats a token."""
    other = _logprobs(quantization=QuantizationConfig.named(name, **kwargs))
    return float((unquantized.exp() * (unquantized - other)).sum(dim=1).mean())


@pytest.mark.slow
@pytest.mark.parametrize(("group_size", "limit"), [(32, 0.03), (128, 0.04)])
def test_calibrated_codes_leave_more_of_the_model_than_rounding(
    unquantized: Tensor, group_size: int, limit: float
) -> None:
    # 704 inputs of `down` are no multiple of 128.
    form = {"group_size": group_size, "group_sizes": {"*.down": min(group_size, 64)}}
    rounded = _kl(unquantized, "int4", **form)
    gptq = _kl(unquantized, "gptq", calibration=CALIBRATION, **form)
    awq = _kl(unquantized, "awq", calibration=CALIBRATION, **form)
    assert rounded < limit
    assert gptq < 0.7 * rounded and awq < 0.95 * rounded


def test_eight_bits_cost_almost_nothing(unquantized: Tensor) -> None:
    assert _kl(unquantized, "int8_weight_only") < 3e-4
    assert _kl(unquantized, "int8_dynamic") < 1.5e-3


@pytest.mark.parametrize("weight_dtype", ["float16", "bfloat16"])
def test_the_checkpoints_own_16_bits_cost_nothing_at_all(unquantized: Tensor, weight_dtype: str) -> None:
    got = _logprobs(quantization=QuantizationConfig.named("none", weight_dtype=weight_dtype))
    # It is stored in float16.
    assert torch.equal(got, unquantized) == (weight_dtype == "float16")
