"""The door to bitsandbytes: imported when a scheme of it is chosen, and never before."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor

from minivllm.quantization.base import LinearTarget
from minivllm.quantization.weight import QuantizedWeight


def import_bitsandbytes(scheme: str, target: LinearTarget) -> Any:
    """The module.

    Raises:
        ValueError: it is not installed, does not load on this machine, or cannot do what the engine promises.
    """
    if target.batch_invariant:
        raise ValueError(
            f"execution.batch_invariant=true: bitsandbytes' products (quantization={scheme}) change with the batch: "
            "choose int4, int8_weight_only or int8_dynamic"
        )
    try:
        return importlib.import_module("bitsandbytes")
    except (ImportError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"quantization={scheme}: bitsandbytes cannot be imported ({reason}): pip install 'minivllm[bitsandbytes]', "
            "or choose int4 or int8_weight_only"
        ) from error


def require_full_weight(scheme: str, name: str, weight: Tensor | QuantizedWeight) -> Tensor:
    """The weight, where it is none that a checkpoint has quantized already."""
    if isinstance(weight, QuantizedWeight):
        raise ValueError(
            f"quantization={scheme}: {name} comes as {weight.kind} from a checkpoint that is quantized already: choose "
            "quantization=none, which leaves it as it is"
        )
    return weight
