"""Models: what a checkpoint says it is (`spec`, `folder`: no torch), and the decoder made of it (`loader`, `llama`).

Names are exported lazily, so that the shape of a model can be read without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minivllm.models.folder import read_spec, resolve_folder
    from minivllm.models.llama import Attend, Llama, Model
    from minivllm.models.loader import load_model
    from minivllm.models.spec import ModelSpec, RopeSpec

__all__ = ["Attend", "Llama", "Model", "ModelSpec", "RopeSpec", "load_model", "read_spec", "resolve_folder"]

_HOME = {
    "Attend": "minivllm.models.llama",
    "Llama": "minivllm.models.llama",
    "Model": "minivllm.models.llama",
    "ModelSpec": "minivllm.models.spec",
    "RopeSpec": "minivllm.models.spec",
    "load_model": "minivllm.models.loader",
    "read_spec": "minivllm.models.folder",
    "resolve_folder": "minivllm.models.folder",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'minivllm.models' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
