"""What the items of the table `quality` say of one precision, alone and against another.

| figure | of items | is |
| --- | --- | --- |
| `perplexity` | text | exp of nats over tokens |
| `kl_mean_nats` | text | divergence from the unquantized model's next-token distribution, over tokens |
| `top1_agreement_fraction` | text | likeliest tokens that are the unquantized model's |
| `top1_flip_fraction` | text | tokens that exactly one of the two has right |
| `token_agreement_fraction` | generation | greedy tokens equal to the unquantized model's at the same place |
| `task_score_fraction` | task | items answered right |

Two precisions are compared on the items that both have, with as many tokens in both. See `analysis.item_intervals` for
what the intervals are of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis.baseline import PointKey
from analysis.columns import OK, POINT_KEY, RUN_KEY
from analysis.item_intervals import Interval, per_token, positive_per_token, share, share_difference
from analysis.load import Sweep
from analysis.machine_caveats import column_of
from analysis.summary import numbers

TEXT, GENERATION, TASK = "text", "generation", "task"
# Column of `runs`: kind of item, and what is summed over its tokens.
SUMS = {
    "kl_mean_nats": (TEXT, "kl_sum_nats"),
    "top1_agreement_fraction": (TEXT, "top1_matches"),
    "top1_flip_fraction": (TEXT, "top1_flips"),
    "token_agreement_fraction": (GENERATION, "token_matches"),
}
TASK_SCORE = "task_score_fraction"
FIGURES = ("perplexity", *SUMS, TASK_SCORE)
_NUMBERS = ("num_tokens", "nll_sum_nats", "first_divergence", *(column for _, column in SUMS.values()))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Quality:
    """What was measured of one precision.

    Args:
        items: by kind, rows by item id: the columns of `quality`, numbers as floats; none where only the run's own
            figures are known.
        figures: those of the run's row of `runs`, finite ones.
        size: batch size of the point that they are of.
        num_tokens: of text.
    """

    items: dict[str, pd.DataFrame] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    size: float | None = None
    num_tokens: int = 0

    @property
    def is_measured(self) -> bool:
        """Whether there is any figure."""
        return bool(self.items or self.figures)

    def of(self, kind: str, column: str) -> pd.DataFrame:
        """Items of a kind of which a column is known; without rows where there are none."""
        found = self.items.get(kind)
        return pd.DataFrame(columns=["num_tokens", column]) if found is None else found[found[column].notna()]


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """One figure of a precision, and against that of another.

    Args:
        alone: the figure.
        ratio: to the other's; of perplexities only.
        difference: from the other's.
        p: McNemar's, of equal shares of right answers.
    """

    alone: Interval = Interval()
    ratio: Interval = Interval()
    difference: Interval = Interval()
    p: float = math.nan


def has_quality(sweep: Sweep) -> bool:
    """Whether any finished run has a figure of quality."""
    finished = sweep.runs[sweep.runs["status"] == OK]
    return any(numbers(column_of(finished, name)).notna().any() for name in FIGURES)


def quality_of(sweep: Sweep, rows: Sequence[dict[float | None, PointKey]]) -> list[Quality]:
    """Of each row what was measured at its first batch size of which anything was, in its first such repeat.

    Args:
        sweep: from `analysis.load`.
        rows: points by batch size.
    """
    runs = sweep.runs[sweep.runs["status"] == OK].drop_duplicates(RUN_KEY).sort_values("repeat", kind="stable")
    of_point = {key: own for key, own in runs.groupby(POINT_KEY, sort=False)}
    of_run = {key: own for key, own in sweep.quality.groupby(RUN_KEY, sort=False)}
    made = []
    for points in rows:
        candidates = (
            _measured(run, of_run.get((key[0], run["run_id"])), size)
            for size, key in points.items()
            if key in of_point
            for _, run in of_point[key].iterrows()
        )
        made.append(next((one for one in candidates if one.is_measured), Quality()))
    return made


def _measured(run: pd.Series, rows: pd.DataFrame | None, size: float | None) -> Quality:
    names = [*FIGURES, "first_divergence_mean_tokens", "quality_num_tokens"]
    known = {name: pd.to_numeric(run.get(name), errors="coerce") for name in names}
    figures = {name: float(value) for name, value in known.items() if pd.notna(value) and np.isfinite(value)}
    num_tokens = int(figures.pop("quality_num_tokens", 0))
    items: dict[str, pd.DataFrame] = {}
    if rows is not None and len(rows):
        rows = rows.assign(**{name: numbers(column_of(rows, name)) for name in _NUMBERS})
        rows = rows.replace([np.inf, -np.inf], np.nan)
        items = {
            str(kind): own.drop_duplicates("item_id").set_index("item_id") for kind, own in rows.groupby(_kinds(rows))
        }
    if TEXT in items:
        num_tokens = int(items[TEXT]["num_tokens"].sum())
    return Quality(items=items, figures=figures, size=size, num_tokens=num_tokens)


def _kinds(rows: pd.DataFrame) -> pd.Series:
    """Tables of before there was a column for it tell by what else a row has."""
    guessed = np.where(rows["nll_sum_nats"].notna(), TEXT, np.where(rows["task_correct"].notna(), TASK, GENERATION))
    return column_of(rows, "kind").where(column_of(rows, "kind").notna(), pd.Series(guessed, index=rows.index))


def perplexity(own: Quality, base: Quality | None) -> Compared:
    """exp of nats over tokens, and the ratio to the other's, window by window."""
    column = "nll_sum_nats"
    rows = own.of(TEXT, column)
    alone = (
        per_token(rows[column].to_numpy(), rows["num_tokens"].to_numpy()).exp()
        if len(rows)
        else _told(own, "perplexity")
    )
    if base is None:
        return Compared(alone=alone)
    both = _both(own, base, TEXT, column)
    if len(both):
        gaps = both["own"] - both["base"]
        return Compared(alone=alone, ratio=per_token(gaps.to_numpy(), both["num_tokens"].to_numpy()).exp())
    before = perplexity(base, None).alone.value
    return Compared(alone=alone, ratio=Interval(value=alone.value / before))


def mean(own: Quality, base: Quality | None, name: str) -> Compared:
    """One of `SUMS`, and its difference from the other's."""
    kind, column = SUMS[name]
    rows = own.of(kind, column)
    sums, num_tokens = rows[column].to_numpy(dtype=float), rows["num_tokens"].to_numpy(dtype=float)
    if not len(rows):
        alone = _told(own, name)
    elif name == "kl_mean_nats":
        alone = positive_per_token(sums, num_tokens)
    else:
        alone = per_token(sums, num_tokens).through(0.0, 1.0)
    if base is None:
        return Compared(alone=alone)
    both = _both(own, base, kind, column)
    if len(both):
        difference = per_token((both["own"] - both["base"]).to_numpy(), both["num_tokens"].to_numpy())
        return Compared(alone=alone, difference=difference)
    return Compared(alone=alone, difference=Interval(value=alone.value - mean(base, None, name).alone.value))


def task_score(own: Quality, base: Quality | None) -> Compared:
    """The share of tasks done right, and the difference from the other's, item by item."""
    rows = own.of(TASK, "task_correct")
    alone = share(rows["task_correct"].to_numpy(dtype=bool)) if len(rows) else _told(own, TASK_SCORE)
    if base is None:
        return Compared(alone=alone)
    both = _both(own, base, TASK, "task_correct")
    if len(both):
        difference, p = share_difference(both["own"].to_numpy(dtype=bool), both["base"].to_numpy(dtype=bool))
        return Compared(alone=alone, difference=difference, p=p)
    return Compared(alone=alone, difference=Interval(value=alone.value - task_score(base, None).alone.value))


def first_divergence(own: Quality) -> float:
    """Tokens before the first that differs from the unquantized model's, as the run says."""
    return own.figures.get("first_divergence_mean_tokens", math.nan)


def num_unlike(own: Quality, base: Quality) -> int:
    """Items of the two that cannot be compared: one lacks them, or has them with another number of tokens."""
    made = 0
    for kind in own.items.keys() & base.items.keys():
        rows, others = own.items[kind], base.items[kind]
        made += len(rows.index.union(others.index)) - len(_matched(rows, others))
    return made


def _both(own: Quality, base: Quality, kind: str, column: str) -> pd.DataFrame:
    """`own`, `base`, `num_tokens` of the items that both have."""
    rows, others = own.of(kind, column), base.of(kind, column)
    index = _matched(rows, others)
    return pd.DataFrame(
        {"own": rows.loc[index, column], "base": others.loc[index, column], "num_tokens": rows.loc[index, "num_tokens"]}
    )


def _matched(rows: pd.DataFrame, others: pd.DataFrame) -> pd.Index:
    index = rows.index.intersection(others.index)
    mine, theirs = rows.loc[index, "num_tokens"], others.loc[index, "num_tokens"]
    return index[(mine.eq(theirs) | (mine.isna() & theirs.isna())).to_numpy(dtype=bool)]


def _told(own: Quality, name: str) -> Interval:
    """What the run itself says, of which no items are left to say how sure it is."""
    return Interval(value=own.figures.get(name, math.nan))
