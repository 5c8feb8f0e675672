"""From answers to numbers. Each is a sum over items divided by a sum over items; nothing is averaged twice.

Of held-out text, over all scored tokens t (in every window all but the first), with the engine's probabilities q, those
of the unquantized reference p, and the true tokens x:

    perplexity                   exp(sum -log q(x_t) / sum 1)
    kl_mean_nats                 sum_t sum_v p_t(v) log(p_t(v) / q_t(v)) / sum_t 1
    top1_agreement_fraction      share of t with argmax q_t = argmax p_t
    top1_flip_fraction           share of t where exactly one of argmax p_t and argmax q_t is x_t: what was right became
                                 wrong, or the other way round
    quality_num_tokens           sum_t 1

Of greedy generation, over all tokens of all prompts, by position, with those of the reference:

    token_agreement_fraction     share of tokens that are equal
    first_divergence_mean_tokens mean over prompts of the number of tokens before the first that differs; a prompt
                                 without one counts with all its tokens, so this is at most output_tokens

Of the task (`identifiers`), over items:

    task_score_fraction          share that is right
    task_flip_fraction           share where exactly one of reference and this is right

What has no reference, or no items, is null. In a row of `quality` the same are sums and counts over its `num_tokens`:
`nll_sum_nats`, `kl_sum_nats`, `top1_matches` and `top1_flips` of a window, `token_matches` and `first_divergence` (from
0; null: none) of a prompt. A task item counts no tokens.

Source: KL and flips, 2407.09141; greedy agreement by position punishes one early difference for ever, which is why
first divergence stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from experiments.quality.evaluation import Evaluation
from experiments.quality.identifiers import TASK
from experiments.quality.items import Items
from experiments.quality.reference import Reference

Row = dict[str, Any]


def quality_rows(items: Items, found: Evaluation, reference: Reference | None) -> list[Row]:
    """Rows of the table `quality`, in the order of the items.

    Args:
        items: that were asked.
        found: by this point.
        reference: by the unquantized model; None where there is none.
    """
    return [
        *_text_rows(items, found, reference),
        *_generation_rows(found, reference),
        *_task_rows(items, found),
    ]


def _text_rows(items: Items, found: Evaluation, reference: Reference | None) -> list[Row]:
    rows = []
    for index, (window, scores) in enumerate(zip(items.windows, found.windows, strict=True)):
        row: Row = {
            "item_id": f"text-{index:04d}",
            "kind": "text",
            "num_tokens": len(window) - 1,
            "nll_sum_nats": float(scores.nll.double().sum()),
        }
        if reference is not None:
            assert scores.kl is not None and reference.top1 is not None
            targets, theirs = scores.top1.new_tensor(window[1:]), reference.top1[index]
            row |= {
                "kl_sum_nats": float(scores.kl.double().sum()),
                "top1_matches": int((scores.top1 == theirs).sum()),
                "top1_flips": int(((scores.top1 == targets) != (theirs == targets)).sum()),
            }
        rows.append(row)
    return rows


def _generation_rows(found: Evaluation, reference: Reference | None) -> list[Row]:
    if reference is None:
        return []
    rows = []
    for index, (ours, theirs) in enumerate(zip(found.generated, reference.generated, strict=True)):
        equal = [a == b for a, b in zip(ours, theirs, strict=True)]
        rows.append(
            {
                "item_id": f"generation-{index:04d}",
                "kind": "generation",
                "num_tokens": len(equal),
                "token_matches": sum(equal),
                "first_divergence": None if all(equal) else equal.index(False),
            }
        )
    return rows


def _task_rows(items: Items, found: Evaluation) -> list[Row]:
    return [
        {
            "item_id": f"task-{index:04d}",
            "kind": "task",
            "task": TASK,
            "task_correct": answer == item.expected,
            "task_expected": item.expected,
            "task_answer": answer,
        }
        for index, (item, answer) in enumerate(zip(items.tasks, found.answers, strict=True))
    ]


def quality_columns(rows: Sequence[Row], items: Items, reference: Reference | None) -> Row:
    """Columns of `runs`, from the rows of one run."""
    text, generation, tasks = ([row for row in rows if row["kind"] == kind] for kind in ("text", "generation", "task"))
    num_tokens = _sum(text, "num_tokens")
    columns: Row = {"quality_num_tokens": num_tokens or None}
    if text:
        columns["perplexity"] = math.exp(_sum(text, "nll_sum_nats") / num_tokens)
    if text and reference is not None:
        columns["kl_mean_nats"] = _sum(text, "kl_sum_nats") / num_tokens
        columns["top1_agreement_fraction"] = _sum(text, "top1_matches") / num_tokens
        columns["top1_flip_fraction"] = _sum(text, "top1_flips") / num_tokens
    if generation:
        columns["token_agreement_fraction"] = _sum(generation, "token_matches") / _sum(generation, "num_tokens")
        agreed = [
            row["num_tokens"] if row["first_divergence"] is None else row["first_divergence"] for row in generation
        ]
        columns["first_divergence_mean_tokens"] = sum(agreed) / len(agreed)
    if tasks:
        columns["task_score_fraction"] = _sum(tasks, "task_correct") / len(tasks)
    if tasks and reference is not None:
        theirs = [answer == item.expected for answer, item in zip(reference.answers, items.tasks, strict=True)]
        flips = [row["task_correct"] != correct for row, correct in zip(tasks, theirs, strict=True)]
        columns["task_flip_fraction"] = sum(flips) / len(flips)
    return columns


def _sum(rows: Sequence[Row], key: str) -> float:
    return sum(row[key] for row in rows)
