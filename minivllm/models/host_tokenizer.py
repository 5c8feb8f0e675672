"""The tokenizer of a model without transformers, and so without torch: tokenizer.json, and no chat template."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from minivllm.models.folder import read_json, resolve_folder

# Rust's threads make nothing faster here, and warn in a process that is forked.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class HostTokenizer:
    """What the engine and the workloads need of a tokenizer, named as in transformers.

    Args:
        path: folder or hub id.

    Raises:
        ValueError: no such folder, or no tokenizer.json in it.
    """

    chat_template = None

    def __init__(self, path: str) -> None:
        from tokenizers import Tokenizer

        folder = resolve_folder(path)
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ValueError(
                f"model.tokenizer={path!r}: has no tokenizer.json, which a simulation reads: choose "
                "workload.prompts=random, or a model that has one"
            )
        self._tokenizer = Tokenizer.from_file(str(file))
        settings = folder / "tokenizer_config.json"
        self.bos_token_id = self._id(read_json(settings).get("bos_token")) if settings.is_file() else None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def _id(self, token: Any) -> int | None:
        """Of a token as transformers writes it: its text, or a mapping that has it."""
        content = token.get("content") if isinstance(token, dict) else token
        return None if content is None else self._tokenizer.token_to_id(content)
