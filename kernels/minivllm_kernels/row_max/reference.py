"""What the maximum of a row means."""

from __future__ import annotations

import torch
from torch import Tensor


def row_max_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's largest value and the first place that holds it.

    Args:
        x: [M, V], any float dtype.

    Returns:
        values [M] in the dtype of `x`, NaN where a row has one; places [M] int64, in [0, V), of any value where NaN.
    """
    values, places = [], []
    for row in x.tolist():
        has_nan = any(value != value for value in row)
        values.append(float("nan") if has_nan else max(row))
        places.append(0 if has_nan else row.index(max(row)))
    return torch.tensor(values, dtype=x.dtype), torch.tensor(places)
