"""What every point of a model is asked: stretches of text, beginnings to go on with, and identifiers to complete.

All of it follows from the text, the tokenizer and the settings, without chance: two points of one model are asked the
same, item by item, which is what pairs their answers. Items are spread over the documents, as many from each as it has
room for, and never overlap within a kind.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments.measurement import HELDOUT
from experiments.points import located
from experiments.quality.identifiers import TaskItem, find_task_items
from experiments.quality.settings import QualityConfig
from experiments.quality.spread import spread
from experiments.workloads.prompts import read_documents

# A larger text is thinned out evenly: tokenizing it would take longer than asking.
_MAX_DOCUMENTS = 64
_MAX_CHARS = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Items:
    """The questions, in token ids.

    Args:
        windows: [num_windows] of window_tokens ids; the first is given, the others are scored.
        prompts: [num_prompts] of prompt_tokens ids.
        tasks: [num_task_items].
    """

    windows: tuple[tuple[int, ...], ...]
    prompts: tuple[tuple[int, ...], ...]
    tasks: tuple[TaskItem, ...]

    @property
    def sha256(self) -> str:
        """Equal for who is asked the same."""
        tasks = [(item.context, item.expected) for item in self.tasks]
        return hashlib.sha256(json.dumps([self.windows, self.prompts, tasks]).encode()).hexdigest()


def text_path(config: QualityConfig) -> str:
    """The file of `quality.text`."""
    path = located(HELDOUT if config.text == "heldout" else config.text)
    assert path is not None
    return path


def make_items(config: QualityConfig, tokenizer: Any) -> Items:
    """Read the text and cut it up.

    Args:
        config: how much of what.
        tokenizer: of transformers.

    Raises:
        ValueError: the text cannot be read, or has less than is asked for.
    """

    def encode(text: str) -> list[int]:
        # Not verbose: a document may be longer than the model's context, for it is cut afterwards.
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return ids

    texts = read_documents(text_path(config), key="quality.text", members="heldout")
    texts = [text[:_MAX_CHARS] for text in texts[:: -(-len(texts) // _MAX_DOCUMENTS)]]
    first = () if tokenizer.bos_token_id is None else (int(tokenizer.bos_token_id),)
    documents = [encode(text) for text in texts] if config.num_windows or config.num_prompts else []
    return Items(
        windows=_stretches(documents, first, config, "num_windows", "window_tokens"),
        prompts=_stretches(documents, first, config, "num_prompts", "prompt_tokens"),
        tasks=find_task_items(texts, encode, tokenizer.decode, first, config),
    )


def _stretches(
    documents: Sequence[Sequence[int]], first: tuple[int, ...], config: QualityConfig, num_key: str, tokens_key: str
) -> tuple[tuple[int, ...], ...]:
    """`num_key` stretches of `tokens_key` ids, `first` before each."""
    wanted, length = getattr(config, num_key), getattr(config, tokens_key)
    size = length - len(first)
    places = spread([len(ids) // size for ids in documents], wanted)
    if wanted and not places:
        raise ValueError(
            f"quality.{tokens_key}={length}: no document of quality.text={config.text!r} is that long: lower it, or "
            "name another text"
        )
    if len(places) < wanted:
        raise ValueError(
            f"quality.{num_key}={wanted}: quality.text={config.text!r} has {len(places)} stretches of "
            f"quality.{tokens_key}={length}: lower one, or name a longer text"
        )
    return tuple((*first, *documents[d][place * size : (place + 1) * size]) for d, place in places)
