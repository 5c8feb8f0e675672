"""The layout of compressed-tensors, which llm-compressor writes and vLLM reads: 4 and 8-bit integers.

`pack-quantized`: `weight_packed [out, in / 8]`, a word holds 8 neighbouring inputs (with 8 bits 4); `weight_scale
[out, groups]`; `weight_shape [2]`; and with zeros `weight_zero_point [out / 8, groups]`, 8 neighbouring outputs a word.
Codes and zeros are stored half their range too large, so that they are never negative.
`int-quantized`: `weight [out, in]` int8 and `weight_scale`.

Which weight is quantized how is a matter of groups with targets, and of a list of what to ignore: names, expressions
after `re:`, and the class `Linear`, which is every projection.

Source: compressed-tensors 0.20, compressors/pack_quantized, quantization/quant_config and utils/match.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

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

LINEAR = "Linear"
PACKED, PLAIN = "pack-quantized", "int-quantized"


class CompressedTensors(Format):
    """As in the module."""

    def __init__(self, fields: Fields) -> None:
        super().__init__(fields)
        fields.require(not fields.get("kv_cache_scheme"), "kv_cache_scheme", "absent: K/V are kept as computed")
        sparsity = fields.nested("sparsity_config")
        sparsity.require(sparsity.get("format") in (None, "dense"), "format", "dense or absent")
        fields.require(not fields.get("transform_config"), "transform_config", "absent: nothing is rotated here")
        self._ignored = _names(fields, "ignore", [])
        groups = fields.nested("config_groups")
        fields.require(bool(groups.mapping), "config_groups", "a mapping of one group or more")
        self._group_of: dict[str, _Group] = {}
        for name in groups.mapping:
            group = _Group(groups.nested(name), str(fields.get("format")))
            self._group_of |= dict.fromkeys(group.targets, group)

    def form(self, module: str, shape: tuple[int, int], headers: Mapping[str, Header]) -> Form | None:
        if any(_names_it(target, module) for target in self._ignored):
            return None
        # The most special target counts: a name, then an expression, then the class.
        targets = sorted(self._group_of, key=lambda target: (target == LINEAR, target.startswith("re:")))
        matching = [self._group_of[target] for target in targets if _names_it(target, module)]
        if not matching:
            return None
        group = matching[0]
        num_outputs, num_inputs = shape
        group_size = group.group_size or num_inputs
        num_groups = self.num_groups(module, num_inputs, group_size)
        scale_shape: tuple[int, ...] = (num_outputs, num_groups)
        if group.one_scale:
            scale = headers.get(f"{module}.weight_scale")
            scale_shape = () if scale is not None and scale.shape == () else (1,)
        tensors = {
            "weight_scale": Stored(shape=scale_shape, dtypes=FLOATS),
            # Old files have one of zeros where there is none.
            "weight_zero_point": Stored(shape=None, dtypes=("I8", "I32", "I64"), need="blank"),
        }
        per_word = 32 // group.bits
        if group.is_packed:
            num_words = -(-num_inputs // per_word)
            tensors["weight_packed"] = Stored(shape=(num_outputs, num_words), dtypes=WORDS)
            tensors["weight_shape"] = Stored(shape=(2,), dtypes=("I64", "I32"))
        else:
            tensors["weight"] = Stored(shape=shape, dtypes=("I8",))
        if not group.symmetric:
            zeros_shape = (-(-num_outputs // per_word), num_groups)
            tensors["weight_zero_point"] = Stored(shape=zeros_shape, dtypes=WORDS)
        if group.ordered:
            tensors["weight_g_idx"] = Stored(shape=(num_inputs,), dtypes=("I32", "I64"))
        return Form(
            bits=group.bits,
            group_size=group_size,
            symmetric=group.symmetric,
            dynamic=group.dynamic,
            index="weight_g_idx" if group.ordered else None,
            tensors=tensors,
        )

    def read(self, module: str, shape: tuple[int, int], form: Form, take: Take) -> QuantizedWeight:
        source, num_outputs = self.fields.source, shape[0]
        if "weight_packed" in form.tensors:
            stored_shape = tuple(take("weight_shape").tolist())
            if stored_shape != shape:
                raise ValueError(
                    f"{source}: tensor {module}.weight_shape has values {list(stored_shape)}: must be {list(shape)} by "
                    "the rest of the file"
                )
            codes = codes_in_words(take("weight_packed"), form.bits).flatten(1)[:, : shape[1]].contiguous()
            codes = codes if form.bits == 4 else signed(codes)
        else:
            codes = take("weight")
        scales, zeros, order = take("weight_scale"), None, None
        if scales.dim() < 2:
            scales = scales.reshape(1, 1).expand(num_outputs, 1)
        if not form.symmetric:
            words = take("weight_zero_point").t()
            zeros = codes_in_words(words, form.bits).flatten(1)[:, :num_outputs].t().contiguous()
        if form.index is not None:
            order = order_of(take(form.index), form.group_size, f"{module}.{form.index}", source)
            codes = codes if order is None else codes.index_select(1, order)
        return QuantizedWeight(
            kind=f"int{form.bits}",
            codes=codes,
            scales=kept_scales(scales, f"{module}.weight_scale", source),
            zeros=zeros,
            dynamic=form.dynamic,
            order=order,
        )


class _Group:
    """A group of config.json, checked.

    Args:
        fields: of the group.
        default_format: of the whole file, for groups that have none of their own.
    """

    def __init__(self, fields: Fields, default_format: str) -> None:
        self.targets = _names(fields, "targets", None)
        form = fields.get("format") or default_format
        if form not in (PACKED, PLAIN):
            raise ValueError(
                f"{fields.source}: {fields.prefix}format={form!r}: must be {PACKED} or {PLAIN}, here or for all groups"
            )
        self.is_packed = form == PACKED
        weights = fields.nested("weights")
        weights.require(weights.get("type") in (None, "int"), "type", "int")
        self.bits = weights.count("num_bits", 8)
        weights.require(self.bits in ((4, 8) if self.is_packed else (8,)), "num_bits", f"8{', or 4' * self.is_packed}")
        weights.require(not weights.get("dynamic"), "dynamic", "false: weights do not change")
        self.symmetric = weights.flag("symmetric", True)
        weights.require(self.symmetric or self.bits == 4, "symmetric", "true where num_bits=8")
        size = weights.get("group_size")
        # What is not said follows from the size.
        strategy = weights.get("strategy") or ("tensor" if size is None else "channel" if size == -1 else "group")
        weights.require(strategy in ("group", "channel", "tensor"), "strategy", "group, channel or tensor")
        # None is a whole row.
        self.group_size = weights.count("group_size") if strategy == "group" else None
        self.one_scale = strategy == "tensor"
        weights.require(self.symmetric or not self.one_scale, "strategy", "group or channel where symmetric=false")
        actorder = weights.get("actorder")
        allowed = (None, False, "weight", "static", True, "group", "dynamic")
        weights.require(actorder in allowed, "actorder", "weight, group or absent")
        self.ordered = actorder in (True, "group", "dynamic") and strategy == "group"
        self.dynamic = fields.get("input_activations") is not None
        fields.require(fields.get("output_activations") is None, "output_activations", "absent")
        if self.dynamic:
            rounds_rows = self.bits == 8 and strategy != "group"
            fields.require(rounds_rows, "input_activations", "absent where weights have 4 bits or groups")
            inputs = fields.nested("input_activations")
            inputs.require(inputs.get("type") in (None, "int"), "type", "int")
            inputs.require(inputs.get("num_bits") == 8, "num_bits", "8")
            inputs.require(inputs.get("dynamic") is True, "dynamic", "true: each token is rounded as it comes")
            inputs.require(inputs.get("strategy") == "token", "strategy", "token")
            inputs.require(inputs.flag("symmetric", True), "symmetric", "true")


def _names(fields: Fields, key: str, default: Sequence[str] | None) -> list[str]:
    value = fields.get(key)
    if value is None and default is not None:
        return list(default)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        fields.refuse(key, "a list of names, of expressions after re:, or of classes")
    for name in value:
        if name.startswith("re:"):
            try:
                re.compile(name.removeprefix("re:"))
            except re.error as error:
                raise ValueError(
                    f"{fields.source}: {fields.prefix}{key} has {name!r}: must be a regular expression: {error}"
                ) from error
    return value


def _names_it(target: str, module: str) -> bool:
    if target.startswith("re:"):
        return re.match(target.removeprefix("re:"), module) is not None
    return target in (module, LINEAR)
