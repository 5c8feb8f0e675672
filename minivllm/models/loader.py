"""From a `ModelConfig` to a model on a device.

Weights are read, converted, fused and packed one layer at a time, so that peak memory is the final size and about one
layer, whatever dtype the file has.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from minivllm.config import DTYPES, ModelConfig
from minivllm.layers.base import LayerOps
from minivllm.layers.torch_ops import TorchOps
from minivllm.models.checkpoint import Checkpoint
from minivllm.models.folder import read_spec, resolve_folder
from minivllm.models.llama import Llama, WeightSource, tensor_shapes
from minivllm.quantization.base import QuantizationScheme


class RandomWeights:
    """Made-up tensors, a `WeightSource`: for speed, never for quality. Each depends on seed, name and device only.

    Args:
        shapes: every tensor by name.
        seed: one model a seed.
        std: standard deviation; norms are ones and biases zeros, as in an untrained model.
        device, dtype: of the tensors.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], *, seed: int, std: float, device: str, dtype: torch.dtype
    ) -> None:
        self._shapes = shapes
        self._seed = seed
        self._std = std
        self._device = device
        self._dtype = dtype

    def take(self, name: str) -> Tensor:
        shape = self._shapes[name]
        if name.endswith("norm.weight"):
            return torch.ones(shape, dtype=self._dtype, device=self._device)
        if name.endswith(".bias"):
            return torch.zeros(shape, dtype=self._dtype, device=self._device)
        generator = torch.Generator(self._device)
        # The CPU's generator looks at 32 bits of its seed.
        generator.manual_seed(zlib.crc32(f"{self._seed} {name}".encode()))
        tensor = torch.empty(shape, dtype=self._dtype, device=self._device)
        return tensor.normal_(0.0, self._std, generator=generator)


def resolve_dtype(config: ModelConfig, *, device: str, dtype: str) -> torch.dtype:
    """What `auto` means: float32 on a CPU and the checkpoint's own on a GPU."""
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else read_spec(config).dtype
    if dtype not in DTYPES:
        raise ValueError(f"execution.dtype={dtype!r}: must be auto or one of {', '.join(DTYPES)}")
    return getattr(torch, dtype)


def load_model(
    config: ModelConfig, *, device: str, dtype: str, scheme: QuantizationScheme, ops: LayerOps | None = None
) -> Llama:
    """Build the configured model.

    Args:
        config: which weights.
        device: `cpu` or `cuda`.
        dtype: of weights and activations; `auto` is float32 on a CPU and the checkpoint's own on a GPU.
        scheme: how projections are stored and multiplied.
        ops: what computes the rest of a layer; plain PyTorch where None.

    Raises:
        ValueError: anything about the folder, its config or its tensors that does not fit, in one line.
    """
    spec = read_spec(config)
    max_len = spec.limit_length(config.max_model_len)
    torch_dtype = resolve_dtype(config, device=device, dtype=dtype)
    shapes = tensor_shapes(spec)
    source: WeightSource
    if config.weights == "random":
        std = spec.initializer_range
        source = RandomWeights(shapes, seed=config.seed, std=std, device=device, dtype=torch_dtype)
    else:
        assert config.path is not None, "ModelConfig refuses this"
        folder = resolve_folder(config.path)
        source = Checkpoint(folder, shapes, device=device, dtype=torch_dtype, tied_head=spec.tie_word_embeddings)
    with torch.no_grad():
        return Llama(spec, source, scheme, ops if ops is not None else TorchOps(), max_len)
