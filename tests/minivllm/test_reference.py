"""The model that ships: it is trained, it loads, and the engine serves it as transformers does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import Oracle, first_wrong

from minivllm import LLM, SamplingParams

ASSETS = Path(__file__).resolve().parents[2] / "experiments" / "assets"
TARGET = ASSETS / "reference-target"


@pytest.fixture(scope="module")
def texts() -> list[str]:
    with open(ASSETS / "heldout.jsonl", encoding="utf-8") as f:
        return [json.loads(line)["text"] for line in f]


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(TARGET)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"block_size": 1, "max_num_batched_tokens": 48},
        {"block_size": 32, "num_blocks": 12, "prefix_caching": False},
    ],
    ids=str,
)
def test_greedy_continuations_of_held_out_code_are_those_of_transformers(options, texts, oracle) -> None:
    llm = LLM(str(TARGET), **options)
    prompts = [tuple(llm.tokenizer.encode(text)[:n]) for text, n in zip(texts, (5, 64, 129, 200), strict=False)]
    params = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": list(p)} for p in prompts], params)
    outcomes = []
    for prompt, output in zip(prompts, outputs, strict=True):
        wanted, gaps = oracle.greedy(prompt, 64)
        outcomes.append(first_wrong(output.outputs[0].token_ids, wanted, gaps))
    print(outcomes)
    assert set(outcomes) <= {"equal", "tie"} and outcomes.count("tie") <= 1, outcomes


@torch.no_grad()
def test_held_out_loss_is_what_the_model_card_says_and_beats_the_5_gram(texts, oracle) -> None:
    """On the first 512 tokens of each held-out file, which are easier and harder than the rest by turns."""
    card = json.loads((TARGET / "training.json").read_text())
    llm = LLM(str(TARGET))
    nats, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([llm.tokenizer.encode(text)[:513]])
        logits = oracle.model(ids[:, :-1]).logits[0]
        nats += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
    assert card["held_out_nats_by_exit"][-1] < card["kneser_ney_5gram_nats"]
    assert nats / count < card["kneser_ney_5gram_nats"]
    assert nats / count == pytest.approx(card["held_out_nats_by_exit"][-1], abs=0.4)


def test_every_exit_predicts_better_than_the_one_before_it() -> None:
    by_exit = json.loads((TARGET / "training.json").read_text())["held_out_nats_by_exit"]
    assert len(by_exit) == 6 and by_exit == sorted(by_exit, reverse=True)


def test_the_shipped_weights_stay_small() -> None:
    assert sum(path.stat().st_size for path in ASSETS.rglob("*.safetensors")) <= 32 * 2**20
