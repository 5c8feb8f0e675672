"""minivllm: a small LLM inference engine made of parts that can be exchanged and measured.

Names are exported lazily: the host wing (scheduler, blocks, requests) must be importable without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minivllm.llm import LLM, CompletionOutput, RequestOutput
    from minivllm.sampling_params import SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "CompletionOutput", "RequestOutput", "SamplingParams"]

_HOME = {
    "LLM": "minivllm.llm",
    "CompletionOutput": "minivllm.llm",
    "RequestOutput": "minivllm.llm",
    "SamplingParams": "minivllm.sampling_params",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'minivllm' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
