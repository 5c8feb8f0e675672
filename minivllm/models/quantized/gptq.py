"""GPTQ's layout, as AutoGPTQ and GPTQModel write it, 4 and 8 bits.

`qweight [in / 8, out]`: a word holds 8 neighbouring inputs of an output. `qzeros [groups, out / 8]`: 8 neighbouring
outputs. `scales [groups, out]`. `g_idx [in]`: the group of each input, which is not in order where weights were
quantized in the order of their activations (`desc_act`). With 8 bits a word holds 4.

Version 1 of the layout (`checkpoint_format=gptq`) stores zeros minus 1, and as it takes 1 off whole words, a zero of 0
borrows from its neighbour: adding 1 to whole words again is what undoes it. Version 2 (`gptq_v2`) stores zeros.
Symmetric weights have their zero in the middle whatever the version; there are files that say 1 and are 2.

Source: AutoGPTQ's qlinear modules; GPTQModel's conversion between the two versions; vllm-project/vllm#38966.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

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
    order_of,
    signed,
)
from minivllm.quantization.weight import QuantizedWeight

_VERSIONS = ("gptq", "gptq_v2")
_BITS = (4, 8)
# 1 in every code of a word.
_ONES = {4: 0x11111111, 8: 0x01010101}


class Gptq(Format):
    """As in the module."""

    def __init__(self, fields: Fields) -> None:
        super().__init__(fields)
        key = "checkpoint_format" if fields.get("checkpoint_format") is not None else "format"
        version = str(fields.get(key) or _VERSIONS[0]).lower()
        fields.require(version in _VERSIONS, key, f"one of {', '.join(_VERSIONS)}")
        fields.require(fields.get("pack_dtype") in (None, "int32"), "pack_dtype", "int32")
        self._takes_one_off = version == "gptq"
        self._settings = _Settings(fields)
        own = fields.nested("dynamic").mapping
        self._own = [(name.startswith("-:"), _pattern(fields, name), name) for name in own]

    def _settings_of(self, module: str) -> _Settings | None:
        """What holds for one module; None where it was left out."""
        for leaves_out, expression, pattern in self._own:
            if expression.match(module):
                if leaves_out:
                    return None
                own = self.fields.nested("dynamic").nested(pattern)
                return _Settings(Fields({**self.fields.mapping, **own.mapping}, own.source, own.prefix))
        return self._settings

    def form(self, module: str, shape: tuple[int, int], headers: Mapping[str, Header]) -> Form | None:
        settings = self._settings_of(module)
        # Tools leave modules out in many ways (`lm_head`, `modules_in_block_to_quantize`, by class); the file knows.
        if settings is None or (f"{module}.weight" in headers and f"{module}.qweight" not in headers):
            return None
        if module == "lm_head" and f"{module}.qweight" not in headers:
            return None
        num_outputs, num_inputs = shape
        group_size = num_inputs if settings.group_size == -1 else settings.group_size
        num_groups = self.num_groups(module, num_inputs, group_size)
        input_words = self.num_words(module, "inputs", num_inputs, settings.bits)
        output_words = self.num_words(module, "outputs", num_outputs, settings.bits)
        need = "required" if settings.desc_act else "optional"
        return Form(
            bits=settings.bits,
            group_size=group_size,
            symmetric=settings.symmetric,
            index="g_idx" if f"{module}.g_idx" in headers else None,
            tensors={
                "qweight": Stored(shape=(input_words, num_outputs), dtypes=WORDS),
                "qzeros": Stored(shape=(num_groups, output_words), dtypes=WORDS),
                "scales": Stored(shape=(num_groups, num_outputs), dtypes=FLOATS),
                "g_idx": Stored(shape=(num_inputs,), dtypes=("I32", "I64"), need=need),
                # Old files have one for every projection, whether the model does or not.
                "bias": Stored(shape=(num_outputs,), dtypes=FLOATS, need="blank"),
            },
        )

    def read(self, module: str, shape: tuple[int, int], form: Form, take: Take) -> QuantizedWeight:
        codes = codes_in_words(take("qweight"), form.bits).transpose(0, 1).reshape(shape)
        order = None
        if form.index is not None:
            order = order_of(take(form.index), form.group_size, f"{module}.{form.index}", self.fields.source)
            codes = codes if order is None else codes.index_select(1, order)
        return QuantizedWeight(
            kind=f"int{form.bits}",
            codes=codes if form.bits == 4 else signed(codes),
            scales=kept_scales(take("scales").t(), f"{module}.scales", self.fields.source),
            zeros=self._zeros(module, form, take("qzeros")),
            order=order,
        )

    def _zeros(self, module: str, form: Form, words: Tensor) -> Tensor | None:
        if not form.symmetric:
            if self._takes_one_off:
                words = words + _ONES[form.bits]
            return codes_in_words(words, form.bits).flatten(1).t().contiguous()
        zeros, middle = codes_in_words(words, form.bits), 2 ** (form.bits - 1)
        lowest, highest = int(zeros.min()), int(zeros.max())
        if lowest != highest or lowest not in (middle - 1, middle):
            raise ValueError(
                f"{self.fields.source}: tensor {module}.qzeros has values {lowest} to {highest}: must be "
                f"{middle - 1} everywhere (or {middle}) where {self.fields.prefix}sym=true"
            )
        return None


class _Settings:
    """What may differ from module to module."""

    def __init__(self, fields: Fields) -> None:
        self.bits = fields.count("bits")
        fields.require(self.bits in _BITS, "bits", "4 or 8")
        size = fields.get("group_size")
        valid = isinstance(size, int) and not isinstance(size, bool) and (size == -1 or size >= 1)
        fields.require(valid, "group_size", "a whole number of 1 or more, or -1 for a whole row")
        self.group_size = int(size)
        self.desc_act = fields.flag("desc_act", False)
        self.symmetric = fields.flag("sym", True)
        fields.require(self.symmetric or self.bits == 4, "sym", "true where bits=8")


def _pattern(fields: Fields, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(re.sub(r"^[-+]:", "", pattern))
    except re.error as error:
        raise ValueError(
            f"{fields.source}: {fields.prefix}dynamic has {pattern!r}: must be a regular expression: {error}"
        ) from error
