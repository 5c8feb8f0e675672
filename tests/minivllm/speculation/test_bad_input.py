"""What a user gets wrong about speculation is one clear line: the key, the value, what to do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny import WORDS, save_tiny_llama, save_tokenizer

from minivllm import LLM, SamplingParams
from minivllm.config import Component, SpeculationConfig
from minivllm.speculation.base import DraftRequest, HostDrafter


class Stubborn(HostDrafter):
    """Proposes the same, whatever it is asked for."""

    def __init__(self, *, target, drafts: Sequence[int]) -> None:
        super().__init__(target=target)
        self._drafts = drafts

    def propose(self, requests: Sequence[DraftRequest]) -> Sequence[Sequence[int]]:
        return [self._drafts for _ in requests]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(save_tiny_llama(tmp_path_factory.mktemp("target")))


def _error(folder: Path, speculation, **options) -> str:
    with pytest.raises(ValueError) as caught:
        LLM(str(folder), speculation=speculation, num_blocks=20, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_draft_model_of_another_vocabulary(folder: Path, tmp_path: Path) -> None:
    other = save_tiny_llama(tmp_path, vocab_size=88)
    assert _error(folder, SpeculationConfig.named("draft_model", path=str(other))) == (
        f"speculation.path={str(other)!r}: has a vocabulary of 88, the target has 89: choose a model with the target's "
        "tokenizer"
    )


def test_a_draft_model_of_another_tokenizer(folder: Path, tmp_path: Path) -> None:
    other = save_tokenizer(save_tiny_llama(tmp_path))
    file = other / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"] = {word: (i + 1) % len(WORDS) for i, word in enumerate(WORDS)}
    file.write_text(json.dumps(content))
    assert _error(folder, SpeculationConfig.named("draft_model", path=str(other))) == (
        f"speculation.path={str(other)!r}: its tokenizer has other tokens than the target's: choose a model with the "
        "target's tokenizer"
    )


def test_a_draft_model_of_a_shorter_context(folder: Path, tmp_path: Path) -> None:
    other = save_tiny_llama(tmp_path, max_position_embeddings=80)
    speculation = SpeculationConfig.named("draft_model", path=str(other))
    assert _error(folder, speculation) == (
        f"speculation.path={str(other)!r}: has a context of 80, and model.max_model_len is 160: lower it, or choose "
        "another draft model"
    )
    LLM(str(folder), speculation=speculation, num_blocks=20, max_model_len=80)


def test_a_draft_model_that_is_not_there(folder: Path) -> None:
    message = _error(folder, SpeculationConfig.named("draft_model", path="/nowhere"))
    assert message.startswith("model.path='/nowhere': must be an existing folder") or message.startswith(
        "speculation.path='/nowhere'"
    )


@pytest.mark.parametrize("exit_layer", [0, 2, -1, 1.0, True, "1"])
def test_an_exit_layer_out_of_range(folder: Path, exit_layer) -> None:
    assert _error(folder, SpeculationConfig.named("early_exit", exit_layer=exit_layer)) == (
        f"speculation.exit_layer={exit_layer!r}: must be in [1, 1]: the model has 2"
    )


def test_more_drafts_than_the_context_holds(folder: Path) -> None:
    speculation = SpeculationConfig.named("ngram", num_draft_tokens=19)
    assert _error(folder, speculation, max_model_len=20) == (
        "speculation.num_draft_tokens=19: must be below 19: the context is model.max_model_len=20"
    )
    LLM(str(folder), speculation=SpeculationConfig.named("ngram", num_draft_tokens=18), num_blocks=9, max_model_len=20)


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "4"])
def test_a_number_of_drafts_that_is_none(number) -> None:
    with pytest.raises(ValueError) as caught:
        SpeculationConfig.named("ngram", num_draft_tokens=number)
    assert str(caught.value) == f"speculation.num_draft_tokens={number!r}: must be 1 or more"


def test_speculation_with_overlapping_steps(folder: Path) -> None:
    assert _error(folder, "ngram", overlap=True) == (
        "execution.overlap=True: must be null or false with speculation: how far a step got is known late"
    )


def test_speculation_without_a_kv_cache(folder: Path) -> None:
    assert _error(folder, "ngram", reuse_kv=False, prefix_caching=False) == (
        "cache.reuse_kv=False: must be true with speculation: drafts are verified against the K/V in the cache"
    )


def test_a_drafter_that_does_not_exist(folder: Path) -> None:
    message = _error(folder, "ngramm")
    assert message.startswith("speculation._target_='minivllm.speculation.ngramm.Ngramm': cannot be imported")


def test_a_setting_that_the_drafter_does_not_have(folder: Path) -> None:
    message = _error(folder, SpeculationConfig.named("ngram", max_n_gram=3))
    assert message.startswith("speculation: minivllm.speculation.ngram.Ngram does not take {'max_n_gram': 3}")


def test_a_policy_of_lengths_that_is_none(folder: Path) -> None:
    speculation = SpeculationConfig(
        drafter=Component(target="minivllm.speculation.ngram.Ngram"),
        length=Component(target="minivllm.clock.VirtualClock"),
    )
    assert _error(folder, speculation).startswith("draft_length: minivllm.clock.VirtualClock does not take")


@pytest.mark.parametrize("drafts", [[89], [-1], [3, 3, 3, 3, 3]], ids=str)
def test_a_drafter_that_proposes_what_cannot_be_is_named(folder: Path, drafts: list[int]) -> None:
    speculation = SpeculationConfig(
        drafter=Component(target=f"{__name__}.Stubborn", kwargs={"drafts": drafts}), num_draft_tokens=4
    )
    llm = LLM(str(folder), speculation=speculation, num_blocks=20)
    with pytest.raises(ValueError) as caught:
        llm.generate({"prompt_token_ids": [5, 6, 7]}, SamplingParams(temperature=0, max_tokens=9))
    assert str(caught.value) == (
        f"speculation=Stubborn: proposes {drafts} to request 0: must be at most 4 tokens in [0, 89)"
    )
