"""The tokenizer of a model, through transformers."""

from __future__ import annotations

from typing import Any


def load_tokenizer(path: str | None) -> Any:
    """The tokenizer of a folder or hub id.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    if path is None:
        raise ValueError("model.tokenizer=None: random weights have no tokenizer; name one, or give prompt_token_ids")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"model.tokenizer={path!r}: no tokenizer can be read there: {reason}") from error
