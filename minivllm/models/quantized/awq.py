"""AWQ's layout, as AutoAWQ writes it for its `gemm` kernels, 4 bits with zeros.

`qweight [in, out / 8]` and `qzeros [groups, out / 8]`: a word holds 8 neighbouring outputs of an input or group, the
even ones in its lower half: from the lowest bits up outputs 0, 2, 4, 6, 1, 3, 5, 7. `scales [groups, out]`.

Source: AutoAWQ's packing_utils and WQLinear_GEMM.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from minivllm.models.fields import Fields
from minivllm.models.quantized.base import (
    FLOATS,
    WORDS,
    Form,
    Format,
    Header,
    Stored,
    Take,
    codes_in_words,
    kept_scales,
)
from minivllm.quantization.weight import QuantizedWeight

_BITS = 4
# Where outputs 0 to 7 lie in a word.
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


class Awq(Format):
    """As in the module."""

    def __init__(self, fields: Fields) -> None:
        super().__init__(fields)
        # AutoAWQ's own file has other names for two settings than its config.json.
        bits = "bits" if fields.get("bits") is not None else "w_bit"
        fields.require(fields.get(bits) == _BITS, bits, f"{_BITS}")
        size = "group_size" if fields.get("group_size") is not None else "q_group_size"
        self._group_size = fields.get(size)
        valid = isinstance(self._group_size, int) and (self._group_size == -1 or self._group_size >= 1)
        fields.require(valid, size, "a whole number of 1 or more, or -1 for a whole row")
        fields.require(fields.flag("zero_point", True), "zero_point", "true")
        given = [key for key in ("version", "checkpoint_format", "format") if fields.get(key) is not None]
        if given:
            fields.require(str(fields.get(given[0])).lower() == "gemm", given[0], "gemm")

    def form(self, module: str, shape: tuple[int, int], headers: Mapping[str, Header]) -> Form | None:
        # `modules_to_not_convert` holds parts of names, and the head is never in it; the file knows.
        is_plain = module == "lm_head" or f"{module}.weight" in headers
        if is_plain and f"{module}.qweight" not in headers:
            return None
        num_outputs, num_inputs = shape
        group_size = num_inputs if self._group_size == -1 else self._group_size
        num_groups = self.num_groups(module, num_inputs, group_size)
        num_words = self.num_words(module, "outputs", num_outputs, _BITS)
        return Form(
            bits=_BITS,
            group_size=group_size,
            symmetric=False,
            tensors={
                "qweight": Stored(shape=(num_inputs, num_words), dtypes=WORDS),
                "qzeros": Stored(shape=(num_groups, num_words), dtypes=WORDS),
                "scales": Stored(shape=(num_groups, num_outputs), dtypes=FLOATS),
            },
        )

    def read(self, module: str, shape: tuple[int, int], form: Form, take: Take) -> QuantizedWeight:
        return QuantizedWeight(
            kind="int4",
            codes=_by_output(take("qweight")),
            scales=kept_scales(take("scales").t(), f"{module}.scales", self.fields.source),
            zeros=_by_output(take("qzeros")),
        )


def _by_output(words: Tensor) -> Tensor:
    """[n, out / 8] int32 -> [out, n] uint8."""
    places = torch.tensor(_PLACES, device=words.device)
    return codes_in_words(words, _BITS).index_select(2, places).flatten(1).t().contiguous()
