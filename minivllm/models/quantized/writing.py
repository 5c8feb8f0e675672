"""Writing the layouts of `compressed_tensors`: what stands for a weight, and the config that says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minivllm.models.quantized.compressed_tensors import LINEAR, PACKED, PLAIN
from minivllm.quantization.weight import QuantizedWeight

# Schemes whose codes these layouts hold, for messages.
SAVED = "int4, gptq, awq, int8_weight_only and int8_dynamic"


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenForm:
    """A kind of weight; those of one kind are a group of the config. `group_size` None is a whole row."""

    kind: str
    group_size: int | None
    symmetric: bool
    dynamic: bool

    @classmethod
    def of(cls, weight: QuantizedWeight) -> WrittenForm:
        by_row = weight.kind == "int8" and weight.scales.shape[1] == 1
        return cls(
            kind=weight.kind,
            group_size=None if by_row else weight.group_size,
            symmetric=weight.zeros is None,
            dynamic=weight.dynamic,
        )

    def __str__(self) -> str:
        size = "by row" if self.group_size is None else f"in groups of {self.group_size}"
        return f"{self.kind} {size}{'' if self.symmetric else ' with zeros'}{', 8-bit activations' * self.dynamic}"

    @property
    def layout(self) -> str:
        # Engines know 8-bit weights with float activations as packed ones.
        return PLAIN if self.dynamic else PACKED

    def group(self, targets: list[str]) -> dict[str, Any]:
        weights = {
            "num_bits": 4 if self.kind == "int4" else 8,
            "type": "int",
            "symmetric": self.symmetric,
            "strategy": "channel" if self.group_size is None else "group",
            "group_size": self.group_size,
            "dynamic": False,
        }
        tokens = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
        inputs = tokens if self.dynamic else None
        return {"targets": targets, "weights": weights, "input_activations": inputs, "output_activations": None}


def quantization_config(modules_of: Mapping[WrittenForm, Sequence[str]], ignored: Sequence[str]) -> dict[str, Any]:
    """What config.json says.

    Args:
        modules_of: the modules of each form, one form or more.
        ignored: modules that are not quantized.
    """
    # With several groups each names its modules.
    only = len(modules_of) == 1
    groups = [form.group([LINEAR] if only else list(modules)) for form, modules in modules_of.items()]
    layouts = {form.layout for form in modules_of}
    if len(layouts) > 1:
        groups = [{**group, "format": form.layout} for form, group in zip(modules_of, groups, strict=True)]
    return {
        "quant_method": "compressed-tensors",
        "format": layouts.pop() if len(layouts) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": {f"group_{i}": group for i, group in enumerate(groups)},
        "ignore": list(ignored),
        "kv_cache_scheme": None,
    }


def stored_tensors(module: str, weight: QuantizedWeight) -> dict[str, Tensor]:
    """The tensors that stand for a weight, by suffix. None shares memory with it.

    Raises:
        ValueError: codes of a kind that these layouts do not hold.
    """
    assert weight.order is None, "of our own making"
    if weight.kind not in ("int4", "int8"):
        raise ValueError(f"quantization: {module} is in {weight.kind}, which cannot be saved: {SAVED} can")
    if weight.dynamic:
        return {"weight": weight.codes.clone(), "weight_scale": weight.scales.clone()}
    codes = weight.codes if weight.kind == "int4" else weight.codes.view(torch.uint8) ^ 0x80
    tensors = {
        "weight_packed": _words(codes, weight.bits),
        "weight_scale": weight.scales.clone(),
        "weight_shape": torch.tensor(weight.shape),
    }
    if weight.zeros is not None:
        tensors["weight_zero_point"] = _words(weight.zeros.t(), 4).t()
    return tensors


def _words(codes: Tensor, bits: int) -> Tensor:
    """[n, m] uint8 -> [n, ceil(m * bits / 32)] int32, the first code in the lowest bits."""
    codes = F.pad(codes, (0, -codes.shape[1] % (32 // bits))).contiguous()
    if bits == 4:
        codes = codes[:, ::2] | codes[:, 1::2] << 4
    return codes.view(torch.int32)
