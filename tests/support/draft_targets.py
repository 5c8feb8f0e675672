"""A tiny model to draft for, how it goes on after many prompts, and everyone who can draft for it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny import VOCAB_SIZE, save_tiny_llama

from minivllm.config import Component

MOST_TOKENS = 20
NUM_LAYERS = 3


@dataclass(frozen=True, kw_only=True)
class DraftedTarget:
    """The target.

    Args:
        folder: of it.
        prompts: they share beginnings of all lengths, and some repeat themselves.
        greedy: of each prompt the next `MOST_TOKENS` tokens by transformers, and at each place the gap between the two
            largest logits.
        draft_models: folders of models that draft: one that knows nothing, one that agrees often, and the target.
        medusa, eagle: folders of heads; they draft the newest token again, more or less.
    """

    folder: Path
    prompts: tuple[tuple[int, ...], ...]
    greedy: tuple[tuple[tuple[int, ...], tuple[float, ...]], ...]
    draft_models: dict[str, Path]
    medusa: Path
    eagle: Path

    @property
    def texts(self) -> list[tuple[int, ...]]:
        """Prompts with their greedy continuations."""
        return [(*prompt, *tokens) for prompt, (tokens, _) in zip(self.prompts, self.greedy, strict=True)]

    def drafters(self, texts: list[tuple[int, ...]]) -> dict[str, Component | None]:
        """Whoever can draft for it, by name; `foretold` knows these texts."""
        return {
            "off": None,
            "ngram": _ours("ngram.Ngram"),
            "ngram 2-3": _ours("ngram.Ngram", min_ngram=2, max_ngram=3),
            "ngram across": _ours("ngram.Ngram", across_requests=True, max_history_entries=200),
            **{
                f"draft model {name}": _ours("draft_model.DraftModel", path=str(folder))
                for name, folder in self.draft_models.items()
            },
            **{f"early exit {i}": _ours("early_exit.EarlyExit", exit_layer=i) for i in range(1, NUM_LAYERS)},
            "medusa": _ours("medusa.Medusa", path=str(self.medusa)),
            "medusa tree": _ours("medusa.Medusa", path=str(self.medusa), tree=[3, 2, 1]),
            "eagle": _ours("eagle.Eagle", path=str(self.eagle), draft_vocab_size=50),
            "eagle tree": _ours(
                "eagle.Eagle", path=str(self.eagle), tree=[[0], [0, 0], [1], [0, 0, 0], [1, 0], [1, 1]]
            ),
            "early exit random": _ours("early_exit.EarlyExit", exit_layer=2, random_exit=True),
            "garbage": Component(target="speculating.Garbage"),
            "foretold": Component(target="speculating.Foretold", kwargs={"texts": texts, "most_right": 5}),
        }


LENGTHS = {
    "fixed": Component(target="minivllm.speculation.lengths.fixed.Fixed"),
    "random": Component(target="speculating.RandomLengths"),
    "adaptive": Component(target="minivllm.speculation.lengths.adaptive.Adaptive"),
}


def make_target(folder: Path, **changes: Any) -> DraftedTarget:
    """Write it, and the models that draft for it, below this folder; `changes` to the config of all of them."""
    # Smaller weights than usual, so that texts repeat themselves and n-grams are found.
    changes = {"initializer_range": 0.15, **changes}
    target = save_tiny_llama(folder / "target", num_hidden_layers=NUM_LAYERS, **changes)
    prompts = _make_prompts()
    return DraftedTarget(
        folder=target,
        prompts=prompts,
        greedy=_greedy(target, prompts),
        draft_models={
            "random": save_tiny_llama(folder / "random", seed=1, **{**changes, "num_hidden_layers": 1}),
            "noisy": save_noisy_copy(folder / "noisy", target, 0.05),
            "itself": target,
        },
        medusa=save_medusa(folder / "medusa", target),
        eagle=save_eagle(folder / "eagle", target),
    )


def save_noisy_copy(folder: Path, source: Path, noise: float) -> Path:
    """The model in `source` with noise on its weights, as a share of their standard deviation: it agrees often."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight += noise * weight.std() * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(folder)
    return folder


def save_medusa(folder: Path, target: Path) -> Path:
    """Eight heads of one block for the model in `target`, small enough that they hardly change the hidden state."""
    width = json.loads((target / "config.json").read_text())["hidden_size"]
    tensors = {"embed_proj.weight": _random(width, width)}
    for head in range(8):
        tensors[f"heads.{head}.0.linear.weight"] = _random(width, width)
        tensors[f"heads.{head}.0.linear.bias"] = _random(width)
        tensors[f"heads.{head}.1.weight"] = torch.eye(width) + _random(width, width)
        tensors[f"heads.{head}.1.weight"] = torch.eye(width)
    return _save_heads(folder, target, tensors, architectures=["MedusaHeads"], num_heads=8, num_blocks=1)


def save_eagle(folder: Path, target: Path) -> Path:
    """A layer that hardly changes the hidden state before a token."""
    config = json.loads((target / "config.json").read_text())
    width, middle, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q_size, kv_size = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    tensors = {
        "fc.weight": torch.cat([_random(width, width), torch.eye(width)], dim=1),
        "norm.weight": torch.ones(width),
        "layers.0.input_layernorm.weight": torch.ones(width),
        "layers.0.post_attention_layernorm.weight": torch.ones(width),
        "layers.0.self_attn.q_proj.weight": _random(q_size, width),
        "layers.0.self_attn.k_proj.weight": _random(kv_size, width),
        "layers.0.self_attn.v_proj.weight": _random(kv_size, width),
        "layers.0.self_attn.o_proj.weight": _random(width, q_size),
        "layers.0.mlp.gate_proj.weight": _random(middle, width),
        "layers.0.mlp.up_proj.weight": _random(middle, width),
        "layers.0.mlp.down_proj.weight": _random(width, middle),
        "token_order": torch.randperm(config["vocab_size"], generator=torch.Generator().manual_seed(2)),
    }
    return _save_heads(folder, target, tensors, architectures=["EagleHead"], num_hidden_layers=1)


def _save_heads(folder: Path, target: Path, tensors: dict[str, torch.Tensor], **changes: Any) -> Path:
    folder.mkdir()
    config = json.loads((target / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def _random(*shape: int) -> torch.Tensor:
    return 0.05 * torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _ours(name: str, **kwargs: Any) -> Component:
    return Component(target=f"minivllm.speculation.{name}", kwargs=kwargs)


def _make_prompts() -> tuple[tuple[int, ...], ...]:
    generator = torch.Generator().manual_seed(5)
    stem = (3 + torch.randperm(VOCAB_SIZE - 3, generator=generator)[:40]).tolist()
    prompts = []
    for shared in (0, 1, 2, 5, 8, 15, 16, 17, 31, 32, 33, 34):
        for own in (1, 2, 4):
            tail = torch.randint(3, 10, (own,), generator=generator).tolist()
            prompts.append((*stem[:shared], *tail))
        prompts.append((*stem[: (shared + 1) // 2], 9, *stem[: (shared + 1) // 2]))
    return tuple(prompts)


@torch.no_grad()
def _greedy(folder: Path, prompts: tuple[tuple[int, ...], ...]):
    """Each token from scratch, all prompts at once: what stands behind a token does not change its logits."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    lens = torch.tensor([len(prompt) for prompt in prompts])
    every = torch.arange(len(prompts))
    ids = torch.zeros(len(prompts), int(lens.max()) + MOST_TOKENS, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    gaps = []
    for step in range(MOST_TOKENS):
        top = model(ids).logits[every, lens - 1 + step].topk(2)
        gaps.append(top.values[:, 0] - top.values[:, 1])
        ids[every, lens + step] = top.indices[:, 0]
    gaps_of = torch.stack(gaps, dim=1).tolist()
    return tuple((tuple(ids[row, n : n + MOST_TOKENS].tolist()), tuple(gaps_of[row])) for row, n in enumerate(lens))
