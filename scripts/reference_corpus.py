"""Text of the reference models: CPython's standard library, a tokenizer trained on it, and the 5-gram to beat."""

from __future__ import annotations

import hashlib
import json
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np

VOCAB_SIZE = 4096
BOS, EOS = "<|bos|>", "<|eos|>"
HELD_OUT_ONE_IN = 25
CALIBRATION_CHARACTERS = 160_000
# Generated tables: they would teach the model to count, and held out they would measure nothing.
EXCLUDED_FOLDERS = ("encodings", "pydoc_data", "site-packages", "__pycache__", "lib-dynload")


def read_corpus() -> tuple[dict[str, str], dict[str, str]]:
    """Return (train, held_out), each {path inside the library: text}, split by a hash of the path."""
    library = Path(sysconfig.get_paths()["stdlib"])
    train: dict[str, str] = {}
    held_out: dict[str, str] = {}
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        if any(part in EXCLUDED_FOLDERS for part in relative.parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            # Test files in other encodings, on purpose: a few in the whole library.
            continue
        name = relative.as_posix()
        is_test = any("test" in part for part in relative.parts)
        is_held_out = int(hashlib.sha256(name.encode()).hexdigest(), 16) % HELD_OUT_ONE_IN == 0
        if len(text) < 200:
            continue
        (held_out if is_held_out and not is_test else train)[name] = text
    return train, held_out


def calibration_part(train: dict[str, str]) -> dict[str, str]:
    """Files of the training split for quantization schemes to look at: short modules without tests, in the order of a
    hash, until there are CALIBRATION_CHARACTERS."""
    chosen: dict[str, str] = {}
    for name in sorted(train, key=lambda name: hashlib.sha256(f"calibration {name}".encode()).digest()):
        if sum(map(len, chosen.values())) >= CALIBRATION_CHARACTERS:
            break
        is_test = any("test" in part for part in Path(name).parts)
        if not is_test and 2_000 <= len(train[name]) <= 20_000:
            chosen[name] = train[name]
    return chosen


def write_texts(folder: Path, train: dict[str, str], held_out: dict[str, str]) -> None:
    """heldout.jsonl and calibration.jsonl, an object with path and text a line."""
    for file, part in (("heldout", held_out), ("calibration", calibration_part(train))):
        with open(folder / f"{file}.jsonl", "w", encoding="utf-8") as f:
            for name, text in part.items():
                f.write(json.dumps({"path": name, "text": text}) + "\n")


def train_tokenizer(texts: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def encode(tokenizer: Any, texts: list[str]) -> list[np.ndarray]:
    """Token ids of each document, bos and eos included."""
    eos = tokenizer.token_to_id(EOS)
    return [np.array([*e.ids, eos], dtype=np.int64) for e in tokenizer.encode_batch(texts)]


def kneser_ney_nats(train: np.ndarray, held_out: list[np.ndarray], order: int = 5) -> float:
    """Held-out nats a token of an interpolated Kneser-Ney model of `order` (Chen and Goodman 1999, section 2.7).

    An n-gram of 12-bit tokens is one int64, so counting is `np.unique` and looking up is a binary search.
    """
    bits = 12
    assert 1 << bits >= VOCAB_SIZE and order * bits < 64

    def ngrams(tokens: np.ndarray, n: int) -> np.ndarray:
        keys = np.zeros(len(tokens) - n + 1, dtype=np.int64)
        for i in range(n):
            keys = (keys << bits) | tokens[i : len(tokens) - n + 1 + i]
        return keys

    def look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where(keys[at] == wanted, values[at], 0)

    # The highest order has raw counts; each lower one counts the distinct tokens seen before it.
    tables: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    tables[order] = np.unique(ngrams(train, order), return_counts=True)
    for n in range(order - 1, 0, -1):
        tables[n] = np.unique(tables[n + 1][0] & ((1 << (n * bits)) - 1), return_counts=True)

    stream = np.concatenate(held_out)
    probability = np.full(len(stream), 1.0 / VOCAB_SIZE)
    for n in range(1, order + 1):
        keys, counts = tables[n]
        discount = (counts == 1).sum() / ((counts == 1).sum() + 2 * (counts == 2).sum())
        histories, first, fanout = np.unique(keys >> bits, return_index=True, return_counts=True)
        totals = np.add.reduceat(counts, first)
        wanted = ngrams(stream, n)
        count = look_up(keys, counts, wanted)
        total = look_up(histories, totals, wanted >> bits)
        kinds = look_up(histories, fanout, wanted >> bits)
        lower = probability[n - 1 :]
        seen = total > 0
        total = np.maximum(total, 1)
        mixed = np.maximum(count - discount, 0) / total + discount * kinds / total * lower
        probability[n - 1 :] = np.where(seen, mixed, lower)
    # The first token of a document is always bos: as for the model, it is not scored.
    scored = np.ones(len(stream), dtype=bool)
    scored[np.cumsum([0] + [len(d) for d in held_out[:-1]])] = False
    return float(-np.log(probability[scored]).mean())
