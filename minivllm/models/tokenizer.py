"""The tokenizer of a model, through transformers, or without it."""

from __future__ import annotations

from typing import Any


def load_tokenizer(path: str | None, *, host_only: bool = False) -> Any:
    """The tokenizer of a folder or hub id.

    Args:
        path: of it.
        host_only: without transformers, which imports torch; then there is no chat template.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    if path is None:
        raise ValueError("model.tokenizer=None: random weights have no tokenizer; name one, or give prompt_token_ids")
    if host_only:
        from minivllm.models.host_tokenizer import HostTokenizer

        return HostTokenizer(path)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"model.tokenizer={path!r}: no tokenizer can be read there: {reason}") from error
