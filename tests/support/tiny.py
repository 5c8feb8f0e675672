"""Tiny checkpoints with random weights, written by transformers, and what transformers says that they produce."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

VOCAB_SIZE = 89
WORDS = ("<bos>", "<eos>", "<unk>", *(f"w{i}" for i in range(VOCAB_SIZE - 3)))


def save_tiny_llama(folder: Path, *, architecture: str = "Llama", seed: int = 0, **changes: Any) -> Path:
    """A two-layer Llama (or Mistral, ...) of odd sizes. Weights are large enough that greedy tokens vary."""
    import transformers

    config = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 48,
        "intermediate_size": 56,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 160,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    }
    torch.manual_seed(seed)
    config_class, model_class = (getattr(transformers, architecture + kind) for kind in ("Config", "ForCausalLM"))
    model_class(config_class(**config)).eval().save_pretrained(folder)
    return folder


def save_tokenizer(folder: Path) -> Path:
    """A tokenizer of `WORDS`, a space between any two, beside a model."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


class Oracle:
    """Greedy tokens of transformers, one prompt at a time, no cache: the definition of a right answer."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.greedy = lru_cache(maxsize=None)(self._greedy)

    @torch.no_grad()
    def _greedy(self, prompt: tuple[int, ...], num_tokens: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Tokens, and at each place the gap between the two largest logits."""
        ids, gaps = list(prompt), []
        for _ in range(num_tokens):
            top = self.model(torch.tensor([ids])).logits[0, -1].topk(2)
            gaps.append(float(top.values[0] - top.values[1]))
            ids.append(int(top.indices[0]))
        return tuple(ids[len(prompt) :]), tuple(gaps)


def first_wrong(got: tuple[int, ...], wanted: tuple[int, ...], gaps: tuple[float, ...], tolerance: float = 1e-4) -> str:
    """The exactness rule: `equal`, `tie` where the first difference is at a gap under `tolerance`, else a report."""
    for place, (a, b) in enumerate(zip(got, wanted, strict=False)):
        if a != b:
            if gaps[place] < tolerance:
                return "tie"
            return f"token {place} is {a}, must be {b} (the gap of the two likeliest is {gaps[place]:.3g})"
    return "equal"
