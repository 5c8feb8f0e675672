"""The formulae, by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from experiments import tables
from experiments.quality.evaluation import Evaluation, WindowScores
from experiments.quality.identifiers import TaskItem
from experiments.quality.items import Items
from experiments.quality.rows import quality_columns, quality_rows

ITEMS = Items(
    windows=((0, 5, 6, 7), (0, 8, 9, 9)),
    prompts=((0, 1), (0, 2), (0, 3)),
    tasks=tuple(TaskItem(context=(0, 1), expected=name) for name in ("abc", "abd", "abe", "abf")),
)
# True tokens are 5 6 7 and 8 9 9. The reference is right at 5, 7 and the first 9.
REFERENCE: Any = SimpleNamespace(
    top1=torch.tensor([[5, 1, 7], [1, 9, 2]]),
    generated=((1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4)),
    answers=("abc", "x", "abe", ""),
)
FOUND = Evaluation(
    windows=(
        WindowScores(
            nll=torch.tensor([0.5, 1.0, 1.5]), top1=torch.tensor([5, 6, 2]), kl=torch.tensor([0.0, 0.25, 0.5])
        ),
        WindowScores(
            nll=torch.tensor([2.0, 0.0, 1.0]), top1=torch.tensor([3, 9, 2]), kl=torch.tensor([0.125, 0.0, 0.125])
        ),
    ),
    generated=((1, 2, 3, 4), (1, 9, 3, 4), (9, 2, 9, 9)),
    answers=("abc", "abd", "y", ""),
)


def test_rows_count_by_item() -> None:
    rows = quality_rows(ITEMS, FOUND, REFERENCE)
    assert rows[:2] == [
        {
            "item_id": "text-0000",
            "kind": "text",
            "num_tokens": 3,
            "nll_sum_nats": 3.0,
            "kl_sum_nats": 0.75,
            "top1_matches": 1,
            # 6: wrong to right; 7: right to wrong.
            "top1_flips": 2,
        },
        {
            "item_id": "text-0001",
            "kind": "text",
            "num_tokens": 3,
            "nll_sum_nats": 3.0,
            "kl_sum_nats": 0.25,
            # 8 is wrong both times, by other tokens: no match, and no flip.
            "top1_matches": 2,
            "top1_flips": 0,
        },
    ]
    assert [(row["token_matches"], row["first_divergence"]) for row in rows[2:5]] == [(4, None), (3, 1), (1, 0)]
    assert [(row["task_correct"], row["task_expected"], row["task_answer"]) for row in rows[5:]] == [
        (True, "abc", "abc"),
        (True, "abd", "abd"),
        (False, "abe", "y"),
        (False, "abf", ""),
    ]


def test_columns_are_sums_over_sums() -> None:
    columns = quality_columns(quality_rows(ITEMS, FOUND, REFERENCE), ITEMS, REFERENCE)
    assert columns == {
        "quality_num_tokens": 6,
        "perplexity": pytest.approx(math.e),
        "kl_mean_nats": 1 / 6,
        "top1_agreement_fraction": 3 / 6,
        "top1_flip_fraction": 2 / 6,
        "token_agreement_fraction": 8 / 12,
        # 4 where none differs, 1, and 0.
        "first_divergence_mean_tokens": 5 / 3,
        "task_score_fraction": 2 / 4,
        # abd: wrong to right; abe: right to wrong.
        "task_flip_fraction": 2 / 4,
    }
    assert set(columns) <= set(tables.RUNS.names)


def test_what_was_not_asked_is_null() -> None:
    nothing = Items(windows=(), prompts=(), tasks=())
    none = Evaluation(windows=(), generated=(), answers=())
    assert quality_columns(quality_rows(nothing, none, REFERENCE_OF_NOTHING), nothing, REFERENCE_OF_NOTHING) == {
        "quality_num_tokens": None
    }


REFERENCE_OF_NOTHING: Any = SimpleNamespace(top1=None, generated=(), answers=())


def test_the_table_takes_every_row() -> None:
    rows = quality_rows(ITEMS, FOUND, REFERENCE)
    assert {key for row in rows for key in row} <= set(tables.QUALITY.names)
    table = tables.rows_table("quality", "a-r0", rows)
    assert table["kind"].to_pylist() == ["text"] * 2 + ["generation"] * 3 + ["task"] * 4
    assert table["num_tokens"].to_pylist() == [3, 3, 4, 4, 4, None, None, None, None]
    assert table["first_divergence"].to_pylist()[2:5] == [None, 1, 0]
