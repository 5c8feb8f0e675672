"""Text of the reference models: CPython's standard library, a tokenizer trained on it, the 5-gram to beat, and how a
model goes on with pieces of it."""

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


def go_on(folder: Path, prompts: list[np.ndarray], temperatures: list[float], length: int) -> np.ndarray:
    """Prompts with what the target goes on with, all `length` tokens: [num_prompts, length] int64."""
    from minivllm import LLM, SamplingParams

    llm = LLM(str(folder), max_num_seqs=128, max_model_len=length)
    outputs = llm.generate(
        [{"prompt_token_ids": p.tolist()} for p in prompts],
        [
            SamplingParams(temperature=t, max_tokens=length - len(p), ignore_eos=True, seed=i)
            for i, (p, t) in enumerate(zip(prompts, temperatures, strict=True))
        ],
    )
    return np.array([[*o.prompt_token_ids, *o.outputs[0].token_ids] for o in outputs])


def continued_pieces(folder: Path, tokens: np.ndarray, num_rows: int, length: int, seed: int) -> np.ndarray:
    """[num_rows, length]: pieces of training text and what the target goes on with, half of them greedily, about as
    much of the one as of the other. Half open with bos, as a prompt that is the beginning of a file does."""
    rng = np.random.default_rng(seed)
    prompts, temperatures = [], []
    for i in range(num_rows):
        at = rng.integers(len(tokens) - length)
        prompt = tokens[at : at + rng.integers(length // 4, length * 7 // 8)].copy()
        if rng.random() < 0.5:
            # The first entry of the vocabulary.
            prompt[0] = 0
        prompts.append(prompt)
        temperatures.append((0.0, 1.0, 0.0, 0.7)[i % 4])
    return go_on(folder, prompts, temperatures, length)


def held_out_rows(
    folder: Path, tokenizer: Any, texts: list[str], window: int, num_prompt_tokens: int, num_new_tokens: int
) -> dict[str, np.ndarray]:
    """Rows to measure drafts on: `text` [20, window], and how the target goes on with 96 prompts cut at a line,
    `greedy` and `sampled` [96, num_prompt_tokens + num_new_tokens]."""
    rng = np.random.default_rng(0)
    windows = [d[i : i + window] for d in encode(tokenizer, texts) for i in range(0, len(d) - window, window)]
    rows = {"text": np.array([windows[i] for i in rng.permutation(len(windows))[:20]])}
    prompts: list[np.ndarray] = []
    while len(prompts) < 96:
        text = texts[rng.integers(len(texts))]
        starts = [i + 1 for i, c in enumerate(text) if c == "\n"]
        ids = tokenizer.encode(text[: starts[rng.integers(len(starts))]]).ids
        if len(ids) >= num_prompt_tokens:
            prompts.append(np.array(ids[-num_prompt_tokens:]))
    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        rows[name] = go_on(folder, prompts, [temperature] * len(prompts), num_prompt_tokens + num_new_tokens)
    return rows
