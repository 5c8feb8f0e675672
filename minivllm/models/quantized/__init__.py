"""Checkpoints that are quantized already: from a `quantization_config` to the layout of their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minivllm.models.fields import Fields
from minivllm.models.quantized.awq import Awq
from minivllm.models.quantized.base import Format
from minivllm.models.quantized.compressed_tensors import CompressedTensors
from minivllm.models.quantized.gptq import Gptq

# Their names are `spec.QUANT_METHODS`, which knows them without torch.
_FORMATS: Mapping[str, type[Format]] = {"gptq": Gptq, "awq": Awq, "compressed-tensors": CompressedTensors}


def read_format(config: Mapping[str, Any], source: str) -> Format | None:
    """The layout that a config.json asks for; None where weights are as trained.

    Args:
        config: what config.json holds; `ModelSpec.from_hf` has accepted it.
        source: the file, for messages.

    Raises:
        ValueError: a setting that is not supported, by key and value.
    """
    fields = Fields(config, source).nested("quantization_config")
    return _FORMATS[fields.get("quant_method")](fields) if fields.mapping else None
