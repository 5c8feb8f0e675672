"""Which drafter pays? Of each point that drafts: its speed-up, what was accepted where, what its steps cost, the
speed-up that follows from the two, and where it breaks even.

Speed-ups are measured as everywhere here: paired by repeat, on the same requests, log ratios, a t interval. Predictions
come from measured costs (`analysis.speculation_costs`), and each repeat's from the other repeats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import pandas as pd

from analysis.columns import OK, POINT_KEY
from analysis.intervals import CONFIDENCE, paired
from analysis.load import Sweep
from analysis.machine_caveats import column_of
from analysis.metrics import THROUGHPUT
from analysis.naming import labels
from analysis.speculation_caveats import caveats_of
from analysis.speculation_costs import Costs, Decoding, RunKey, costs_of, decoding_of, probability_of
from analysis.speculation_rows import Row, rows_of
from analysis.summary import numbers
from analysis.values import repeats_of

# Of fewer drafts that the verdict fell on, a share is an anecdote: half its 95 % interval is up to 14 %.
FEW_EVALUATED = 50
# A prediction that is further off than this share is marked.
TOLERANCE = 0.1
_COUNTED = ("num_verifications", "num_draft_tokens", "num_accepted_tokens")
_LISTS = ("proposed_by_position", "evaluated_by_position", "accepted_by_position")
_MEANS = ("draft_time_fraction", "verify_time_fraction")
_COSTS = ("plain_step_s", "step_s", "draft_s", "verify_s", "step_gain", "sharing_factor", "rest_fraction")
_TEMPERATURE = "cfg.sampling.temperature"
_HEAD = "sweep point_id setting rest batch label baseline drafter k draft_length is_greedy num_pairs"
_SPEED = "speedup speedup_low speedup_high predicted_speedup"
_ERROR = "prediction_error prediction_error_low prediction_error_high is_predicted_well"
_ACCEPTED = "acceptance_rate acceptance_length break_even_length acceptance_probability break_even_probability"
_WORDS = ("sweep", "point_id", "setting", "rest", "label", "baseline", "drafter", "draft_length")
# True, false, or not known.
_TRUTHS = ("is_greedy", "is_predicted_well", "text_valid")
COLUMNS = [
    *(f"{_HEAD} {THROUGHPUT.column} {_SPEED} {_ERROR} {_ACCEPTED}".split()),
    *(*_COUNTED, *_COSTS, *_MEANS, "text_valid", "same_output_fraction"),
]


def speculation(sweep: Sweep) -> pd.DataFrame:
    """Every point of a sweep that drafts.

    Args:
        sweep: from `analysis.load`.

    Returns:
        One row a point with a drafter, in the order in which they first ran. `setting` is what was varied beside
        speculation, `rest` the same without the batch size `batch`; `baseline` is the point of the same setting without
        drafts; `k` is the most drafts of a request in a step. `speedup` is the ratio of output throughputs, with the
        ends of its 95 % interval; `predicted_speedup` is what follows from costs (`analysis.speculation_costs`), the
        geometric mean over repeats of what the other repeats predict for each; `prediction_error` is that over the
        measured one, less 1, with the least and the most of one repeat, and `is_predicted_well` whether it is within
        10 %. `acceptance_length` is tokens a verification, and `break_even_length` that at which nothing is gained or
        lost; the two `_probability` are the acceptance of each draft, the same for all, that comes to these lengths
        (null where none does). `plain_step_s`, `step_s`, `draft_s` and `verify_s` are means over steps that only
        decode; `step_gain`, `sharing_factor` and `rest_fraction` are G, H and f of the formulae. Of each position i:
        `proposed_i evaluated_i accepted_i`, and `acceptance_i`, accepted over evaluated, null under 50 of them.
        `same_output_fraction` is the share of requests whose output is the one without drafts. What is not known is
        null. `.attrs` has `batch_name`, `num_positions`, `tolerance` and `caveats`, sentences.
    """
    rows = rows_of(sweep)
    finished = sweep.runs[(sweep.runs["status"] == OK) & sweep.runs["repeat"].notna()]
    finished = finished.drop_duplicates([*POINT_KEY, "repeat"], keep="last")
    by_point = {key: group.set_index("repeat") for key, group in finished.groupby(POINT_KEY, sort=False)}
    decoding = decoding_of(sweep) if rows.rows else {}
    outputs = _outputs(sweep) if rows.rows else {}
    speeds = repeats_of(sweep, THROUGHPUT.column)
    names = labels(sweep)
    nothing = finished[:0].set_index("repeat")
    made = []
    for row in rows.rows:
        own = by_point.get(row.key, nothing)
        base = nothing if row.base is None else by_point.get(row.base, nothing)
        figures: dict[str, Any] = {"baseline": None if row.base is None else names[row.base]} | _speed(speeds, row)
        figures |= _accepted(own) | _predicted(row, own, base, decoding)
        figures |= {name: float(numbers(column_of(own, name)).mean()) for name in _MEANS}
        valid = column_of(own, "text_valid").dropna()
        figures["text_valid"] = bool(valid.all()) if len(valid) else None
        figures["is_greedy"] = bool(len(own)) and bool(numbers(column_of(own, _TEMPERATURE)).eq(0).all())
        figures["same_output_fraction"] = _same_outputs(own, base, outputs)
        made.append(_named(row) | _compared(figures))
    return _frame(made, rows.batch_name)


def _named(row: Row) -> dict[str, Any]:
    return {
        "sweep": row.key[0],
        "point_id": row.key[1],
        "setting": row.setting,
        "rest": row.rest,
        "batch": row.batch,
        "label": row.label,
        "drafter": row.drafter,
        "k": row.k,
        "draft_length": row.draft_length,
    }


def _frame(made: Sequence[dict[str, Any]], batch: str) -> pd.DataFrame:
    num_positions: int = max((len(row["proposed_by_position"]) for row in made), default=0)
    # Costs are not there where no step only decoded.
    columns: dict[str, list[Any]] = {name: [row.get(name, math.nan) for row in made] for name in COLUMNS}
    for i in range(num_positions):
        for name in _LISTS:
            counts = [row[name][i] if i < len(row[name]) else 0 for row in made]
            columns[f"{name.removesuffix('_by_position')}_{i + 1}"] = counts
        both = zip(columns[f"accepted_{i + 1}"], columns[f"evaluated_{i + 1}"], strict=True)
        columns[f"acceptance_{i + 1}"] = [kept / num if num >= FEW_EVALUATED else math.nan for kept, num in both]
    frame = pd.DataFrame(
        {
            name: pd.Series(found, dtype="object" if name in _WORDS or name in _TRUTHS else "float64")
            for name, found in columns.items()
        }
    )
    frame.attrs = {
        "batch_name": batch,
        "num_positions": num_positions,
        "tolerance": TOLERANCE,
        "confidence": CONFIDENCE,
    }
    frame.attrs["caveats"] = caveats_of(frame)
    return frame


def _speed(speeds: pd.DataFrame, row: Row) -> dict[str, Any]:
    """Over the repeats that both have."""
    own, base = speeds[row.key], pd.Series(np.nan, index=speeds.index) if row.base is None else speeds[row.base]
    both = own.notna() & base.notna()
    found = paired(own[both].to_numpy(dtype=float), base[both].to_numpy(dtype=float))
    return {
        THROUGHPUT.column: float(own.mean()),
        "num_pairs": found.num_pairs,
        "speedup": found.ratio,
        "speedup_low": found.ratio_low,
        "speedup_high": found.ratio_high,
        # By repeat, for what was predicted of each.
        "ratios": dict((own[both] / base[both]).items()),
    }


def _accepted(own: pd.DataFrame) -> dict[str, Any]:
    """Sums over repeats, and what follows from them."""
    sums = {name: float(numbers(column_of(own, name)).sum()) for name in _COUNTED}
    lists = {name: _summed([one for one in column_of(own, name) if one is not None]) for name in _LISTS}
    num, drafted, accepted = (sums[name] for name in _COUNTED)
    length = 1 + accepted / num if num else math.nan
    return {
        **{name: int(value) for name, value in sums.items()},
        **lists,
        "acceptance_rate": accepted / drafted if drafted else math.nan,
        "acceptance_length": length,
        "acceptance_probability": probability_of(length, lists["proposed_by_position"], int(num)),
    }


def _summed(lists: Sequence[Any]) -> list[int]:
    known = [one for one in lists if isinstance(one, (list, tuple, np.ndarray))]
    return [int(sum(counts)) for counts in zip_longest(*known, fillvalue=0)]


def _predicted(row: Row, own: pd.DataFrame, base: pd.DataFrame, decoding: dict[RunKey, Decoding]) -> dict[str, Any]:
    """Costs of all repeats together; and by repeat the speed-up that the others predict, or that its own costs do where
    there is no other."""
    pairs = {}
    for repeat in own.index.intersection(base.index):
        keys = [(row.key[0], table.at[repeat, "run_id"]) for table in (own, base)]
        if all(key in decoding for key in keys):
            pairs[repeat] = (decoding[keys[0]], decoding[keys[1]])
    whole = _costs(list(pairs.values()))
    if whole is None:
        return {"predictions": {}}
    others = {repeat: [pair for one, pair in pairs.items() if one != repeat] for repeat in pairs}
    each = {repeat: _costs(found or list(pairs.values())) for repeat, found in others.items()}
    return {
        **{name: getattr(whole, name) for name in (*_COSTS, "break_even_length")},
        "predictions": {repeat: one.speedup for repeat, one in each.items() if one is not None},
    }


def _costs(pairs: Sequence[tuple[Decoding, Decoding]]) -> Costs | None:
    return costs_of([drafting for drafting, _ in pairs], [plain for _, plain in pairs])


def _compared(figures: dict[str, Any]) -> dict[str, Any]:
    """What follows from the rest: break-even, and predicted against measured."""
    ratios, predictions = figures.pop("ratios"), figures.pop("predictions")
    known = list(predictions.values())
    errors = [predictions[repeat] / ratio - 1 for repeat, ratio in ratios.items() if repeat in predictions]
    predicted = float(np.exp(np.log(known).mean())) if known else math.nan
    error = predicted / figures["speedup"] - 1
    length = figures.get("break_even_length", math.nan)
    counts = figures["proposed_by_position"], figures["num_verifications"]
    return figures | {
        "predicted_speedup": predicted,
        "prediction_error": error,
        "prediction_error_low": min(errors, default=math.nan),
        "prediction_error_high": max(errors, default=math.nan),
        "is_predicted_well": None if math.isnan(error) else abs(error) <= TOLERANCE,
        "break_even_probability": probability_of(length, *counts),
    }


def _outputs(sweep: Sweep) -> dict[RunKey, pd.Series]:
    """Hash of each measured request's output, by run."""
    requests = sweep.requests
    known = requests[~requests["warmup"].eq(True) & requests["output_sha256"].notna()]
    return {
        key: group.set_index("request_id")["output_sha256"]
        for key, group in known.groupby(["sweep", "run_id"], sort=False)
    }


def _same_outputs(own: pd.DataFrame, base: pd.DataFrame, outputs: dict[RunKey, pd.Series]) -> float:
    """Over the repeats that both have."""
    nothing = pd.Series(dtype="object")
    same = []
    for repeat in own.index.intersection(base.index):
        mine, others = (
            outputs.get((table.at[repeat, "sweep"], table.at[repeat, "run_id"]), nothing) for table in (own, base)
        )
        both = mine.index.intersection(others.index)
        same += (mine[both] == others[both]).tolist()
    return float(np.mean(same)) if same else math.nan
