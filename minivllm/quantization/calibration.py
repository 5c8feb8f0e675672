"""The text that calibrated schemes watch a model read. It is none of the text that quality is measured on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minivllm.config import require

RANDOM = "random"


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationText:
    """Windows of a text.

    Args:
        path: a text file, or a .jsonl file of objects with `text`; `random` draws tokens, for models without a
            tokenizer.
        num_windows, window_tokens: how much of it, spread evenly over the file.
        seed: of random tokens.
    """

    path: str
    num_windows: int = 32
    window_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("num_windows", "window_tokens"):
            value = getattr(self, key)
            valid = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            require(valid, f"quantization.calibration.{key}", value, "1 or more")

    def windows(self, encode: Callable[[str], list[int]], vocab_size: int) -> Tensor:
        """The tokens, [num_windows, window_tokens] int64.

        Args:
            encode: text to token ids, without special tokens; not called for random tokens.
            vocab_size: ids are below.

        Raises:
            ValueError: the file cannot be read, or is shorter than its windows.
        """
        shape = (self.num_windows, self.window_tokens)
        if self.path == RANDOM:
            return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(self.seed))
        ids = encode(read_text(self.path))
        needed = self.num_windows * self.window_tokens
        if len(ids) < needed:
            raise ValueError(
                f"quantization.calibration.path={self.path!r}: has {len(ids)} tokens, and {self.num_windows} windows "
                f"of {self.window_tokens} need {needed}: lower num_windows or window_tokens, or name a longer text"
            )
        starts = torch.linspace(0, len(ids) - self.window_tokens, self.num_windows).long()
        return torch.tensor(ids)[starts[:, None] + torch.arange(self.window_tokens)]


def read_text(path: str) -> str:
    """A text file whole, or the texts of a .jsonl file one after the other.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
        if not path.endswith(".jsonl"):
            return text
        return "\n".join(json.loads(line)["text"] for line in text.splitlines() if line.strip())
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise ValueError(
            f"quantization.calibration.path={path!r}: must be a text file or a .jsonl of objects with text: {reason}"
        ) from error
