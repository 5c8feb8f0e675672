"""The quality of one run, on the engine that was just measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.points import RunSettings
from experiments.quality.evaluation import evaluate
from experiments.quality.items import make_items
from experiments.quality.reference import Reference, can_be_had
from experiments.quality.reference_process import ensure
from experiments.quality.rows import Row, quality_columns, quality_rows
from minivllm.llm import LLM


def prepare_reference(folder: Path, settings: RunSettings) -> Path | None:
    """The file of the unquantized model's answers, made before the point's own model is loaded; None where there is no
    such model.

    Args:
        folder: of the sweep.
        settings: of the point.

    Raises:
        ValueError: the config allows none.
        ReferenceFailed: the process that makes it failed or died.
    """
    if not can_be_had(settings.engine.model):
        return None
    return ensure(folder, settings.engine, settings.quality)


def measure_quality(llm: LLM, settings: RunSettings, reference_path: Path | None) -> tuple[list[Row], dict[str, Any]]:
    """Ask the items. Returns: rows of `quality`, and columns of `runs`.

    Args:
        llm: idle, its run over.
        settings: of the run.
        reference_path: from `prepare_reference`.

    Raises:
        ValueError: an item is longer than this engine's sequences may be.
        RuntimeError: logits that are no numbers, or a text that has changed since the reference was made.
    """
    quality = settings.quality
    items = make_items(quality, llm.tokenizer)
    reference = None if reference_path is None else Reference(reference_path, settings.engine)
    if reference is not None and reference.items_sha256 != items.sha256:
        raise RuntimeError(f"quality.text={quality.text!r}: has changed since the reference was asked: run this again")
    found = evaluate(
        llm, items, output_tokens=quality.output_tokens, reference=reference, generate=reference is not None
    )
    rows = quality_rows(items, found, reference)
    return rows, quality_columns(rows, items, reference)
