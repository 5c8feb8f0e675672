"""A weight's rows laid into panels, once, when a model is loaded; what the packed weights of the products share."""

from __future__ import annotations

import torch
from torch import Tensor

from minivllm_kernels.cpu_memory import advise_huge_pages
from minivllm_kernels.cpu_threads import address
from minivllm_kernels.cpu_tiles import PANEL_WIDTH

# Groups share a scale. A group is whole vectors of words, whatever the code's width.
_GROUP_MULTIPLE = 32
# At a time, when rows are laid out in their own memory.
_COPIED_VALUES = 2**20


def panels_of(rows: Tensor, *, overwrite: bool = False) -> Tensor:
    """Lay rows out for a kernel.

    Args:
        rows: [out, n] of any dtype.
        overwrite: the panels may take the memory of the rows, where they fill it: nothing is held twice.

    Returns:
        [ceil(out / 32), n, 32], zeros where there is no output.
    """
    num_outputs, size = rows.shape
    num_whole, rest = divmod(num_outputs, PANEL_WIDTH)
    shape = (num_whole + (rest > 0), size, PANEL_WIDTH)
    in_place = overwrite and not rest and rows.is_contiguous()
    panels = rows.view(shape) if in_place else torch.empty(shape, dtype=rows.dtype)
    advise_huge_pages(panels)
    # A panel takes the place of its own rows. Some at once, as each step has a cost of its own.
    step = max(1, _COPIED_VALUES // (PANEL_WIDTH * max(1, size)))
    for first in range(0, num_whole, step):
        end = min(first + step, num_whole)
        some = rows[first * PANEL_WIDTH : end * PANEL_WIDTH]
        turned = some.unflatten(0, (end - first, PANEL_WIDTH)).transpose(1, 2)
        panels[first:end] = turned.clone(memory_format=torch.contiguous_format) if in_place else turned
    if rest:
        panels[num_whole] = 0
        panels[num_whole, :, :rest] = rows[num_whole * PANEL_WIDTH :].t()
    return panels


def words_of(rows: Tensor) -> Tensor:
    """Rows of bytes, or of 16-bit values, as rows of 32-bit words, the first in the low bits; zeros fill the last."""
    per_word = 4 // rows.element_size()
    missing = -rows.shape[1] % per_word
    if missing:
        rows = torch.cat([rows, rows.new_zeros(rows.shape[0], missing)], dim=1)
    return rows.contiguous().view(torch.int32)


def group_size_of(codes: Tensor, scales: Tensor) -> int:
    """Inputs that share a scale.

    Args:
        codes: [out, in].
        scales: [out, groups].

    Raises:
        ValueError: where groups are of unequal size, or of a size that the kernels do not compute.
    """
    (num_outputs, num_inputs), (num_scaled, num_groups) = codes.shape, scales.shape
    assert num_outputs == num_scaled and num_groups > 0, f"codes {codes.shape}, scales {scales.shape}"
    group_size, rest = divmod(num_inputs, num_groups)
    if rest or (num_groups > 1 and group_size % _GROUP_MULTIPLE):
        raise ValueError(
            f"{num_groups} groups of scales for {num_inputs} inputs: choose a group size that divides the inputs and is"
            f" a multiple of {_GROUP_MULTIPLE}, or one group"
        )
    return group_size


def bias_address(bias: Tensor | None, num_outputs: int) -> int:
    """Of a bias [num_outputs] float32; 0 where there is none."""
    if bias is None:
        return 0
    assert bias.shape == (num_outputs,), f"bias {bias.shape} for {num_outputs} outputs"
    return address(bias)
