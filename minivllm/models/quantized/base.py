"""What every layout of quantized weights has in common: which tensors stand for a weight, and how words hold codes.

Words are int32 and hold 8 codes of 4 bits or 4 of 8 bits, the first in the lowest bits. Layouts differ in the direction
in which words run, in the order of codes within a word, and in how zeros are written.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from minivllm.models.fields import Fields
from minivllm.quantization.weight import QuantizedWeight

FLOATS = ("F32", "BF16", "F16")
WORDS = ("I32",)
# (suffix) -> the tensor, as it is stored, on the device.
Take = Callable[[str], Tensor]
# Projections that are one product here, so that their weights must be of one form.
_FUSED = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj"))


class Header(Protocol):
    """What a file says of a tensor."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str:
        """By safetensors' name."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A tensor that has a place in the files.

    Args:
        shape: None where it does not matter.
        dtypes: safetensors' names of those that can be read.
        need: `required`; `optional`; or `blank`, which may be there and must then be zeros, as some tools write them.
    """

    shape: tuple[int, ...] | None
    dtypes: tuple[str, ...]
    need: str = "required"


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """How the weight of one projection is stored.

    Args:
        bits: 4 or 8.
        group_size: inputs that share a scale.
        symmetric: no zeros.
        dynamic: activations are rounded too.
        index: suffix of the tensor that says which group an input belongs to, where inputs are not in order.
        tensors: what stands for the weight, by suffix.
    """

    bits: int
    group_size: int
    symmetric: bool
    dynamic: bool = False
    index: str | None = None
    tensors: Mapping[str, Stored]

    def __str__(self) -> str:
        """All that must be alike where weights are joined."""
        return (
            f"int{self.bits}, groups of {self.group_size}, {'' if self.symmetric else 'a'}symmetric, "
            f"{'8-bit' if self.dynamic else 'float'} activations{f', ordered by {self.index}' if self.index else ''}"
        )


class Format(ABC):
    """A layout, as config.json describes it.

    Args:
        fields: of `quantization_config`.

    Raises:
        ValueError: a setting that is not supported, by key and value.
    """

    def __init__(self, fields: Fields) -> None:
        self.fields = fields

    @abstractmethod
    def form(self, module: str, shape: tuple[int, int], headers: Mapping[str, Header]) -> Form | None:
        """How one weight is stored.

        Args:
            module: such as `model.layers.0.mlp.up_proj`.
            shape: (out, in) by config.json.
            headers: every tensor of the files.

        Returns:
            None for a weight that is not quantized.

        Raises:
            ValueError: a setting that does not suit this weight.
        """

    @abstractmethod
    def read(self, module: str, shape: tuple[int, int], form: Form, take: Take) -> QuantizedWeight:
        """Unpack one weight.

        Args:
            module, shape: as in `form`, which gave the form.
            take: tensors by suffix; their shapes and dtypes are checked.

        Raises:
            ValueError: values that mean nothing, by tensor.
        """

    def num_groups(self, module: str, num_inputs: int, group_size: int) -> int:
        """Groups of a row.

        Raises:
            ValueError: the size does not divide the inputs.
        """
        if num_inputs % group_size:
            raise ValueError(
                f"{self.fields.source}: {self.fields.prefix}group_size={group_size}: must divide the {num_inputs} "
                f"inputs of {module}; quantize the model again with a size that does"
            )
        return num_inputs // group_size

    def num_words(self, module: str, what: str, count: int, bits: int) -> int:
        """Words that hold one code for each of `count` inputs or outputs.

        Raises:
            ValueError: the last word would not be full.
        """
        if count * bits % 32:
            raise ValueError(
                f"{self.fields.source}: {module} has {count} {what}: must be a multiple of {32 // bits}, as many as a "
                f"word of {self.fields.get('quant_method')} holds in {bits} bits"
            )
        return count * bits // 32


def is_projection(name: str) -> bool:
    """Whether a checkpoint may hold this weight quantized."""
    return name.endswith("_proj.weight") or name == "lm_head.weight"


def check_alike(forms: Mapping[str, Form | None], source: str, read: Callable[[str], Tensor]) -> None:
    """Weights that become one must be of one form, with their inputs in one order.

    Args:
        forms: of every projection, by module.
        source: the folder, for messages.
        read: a tensor by name.

    Raises:
        ValueError: two that are not, with both forms.
    """
    for module, form in forms.items():
        for first, *others in _FUSED:
            if not module.endswith(first):
                continue
            for other_name in others:
                other = module.removesuffix(first) + other_name
                if str(form) != str(forms[other]):
                    raise ValueError(
                        f"{source}: {module} is stored as {form or 'floats'} and {other} as {forms[other] or 'floats'}:"
                        " must be alike, as they are one product here; quantize or leave out both"
                    )
                if form is not None and form.index is not None:
                    names = [f"{name}.{form.index}" for name in (module, other)]
                    if not torch.equal(*map(read, names)):
                        raise ValueError(
                            f"{source}: tensors {names[0]} and {names[1]} differ: must be equal, as they order the "
                            "inputs of one product here; quantize the model again with desc_act=false"
                        )


def codes_in_words(words: Tensor, bits: int) -> Tensor:
    """[..., n] int32 -> [..., n, 32 / bits] uint8, from the lowest bits up."""
    # Bytes of a word lie in memory from the lowest up.
    in_bytes = words.contiguous().flatten().view(torch.uint8).view(*words.shape, 4)
    return in_bytes if bits == 8 else torch.stack([in_bytes & 15, in_bytes >> 4], dim=-1).flatten(-2)


def signed(codes: Tensor) -> Tensor:
    """uint8 codes whose zero is 128 -> int8 codes whose zero is 0."""
    return (codes ^ 0x80).view(torch.int8)


def kept_scales(scales: Tensor, name: str, source: str) -> Tensor:
    """Scales as a `QuantizedWeight` has them: float16 as it is, others in float32, which holds them unchanged.

    Raises:
        ValueError: one that is not finite.
    """
    if not scales.isfinite().all():
        raise ValueError(f"{source}: tensor {name} has a scale that is not finite: the file is damaged")
    return scales.contiguous() if scales.dtype is torch.float16 else scales.float().contiguous()


def order_of(index: Tensor, group_size: int, name: str, source: str) -> Tensor | None:
    """The order that brings inputs of one group side by side.

    Args:
        index: [in], the group of each input.
        group_size: of all groups.
        name, source: for messages.

    Returns:
        [in] int64, or None where inputs lie so already.

    Raises:
        ValueError: groups of other sizes.
    """
    num_groups = len(index) // group_size
    index = index.long()
    ordered = torch.arange(len(index), device=index.device) // group_size
    if torch.equal(index, ordered):
        return None
    valid = bool((index >= 0).all() and (index < num_groups).all())
    if not valid or not torch.equal(index.sort().values, ordered):
        raise ValueError(
            f"{source}: tensor {name} is no grouping: must name each of {num_groups} groups {group_size} times"
        )
    return index.argsort(stable=True)
