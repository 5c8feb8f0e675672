"""From a `ModelConfig` to a model on a device.

Weights are read, converted, fused and packed one layer at a time, so that peak memory is the final size and about one
layer, whatever dtype the file has.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from minivllm.config import DTYPES, ModelConfig
from minivllm.layers.base import LayerOps
from minivllm.layers.torch_ops import TorchOps
from minivllm.models.checkpoint import Checkpoint
from minivllm.models.flow import CalibrationFlow, Flow
from minivllm.models.folder import read_json, read_spec, resolve_folder
from minivllm.models.llama import Llama, WeightSource, tensor_shapes
from minivllm.models.quantized import read_format
from minivllm.models.spec import ModelSpec
from minivllm.models.tokenizer import load_tokenizer
from minivllm.quantization.base import QuantizationScheme
from minivllm.quantization.calibration import CalibrationText
from minivllm.quantization.select import Keep, Selection


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

    def take_weight(self, name: str) -> Tensor:
        return self.take(name)


def resolve_dtype(config: ModelConfig, *, device: str, dtype: str) -> torch.dtype:
    """What `auto` means: float32 on a CPU and the checkpoint's own on a GPU."""
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else read_spec(config).dtype
    if dtype not in DTYPES:
        raise ValueError(f"execution.dtype={dtype!r}: must be auto or one of {', '.join(DTYPES)}")
    return getattr(torch, dtype)


def open_checkpoint(folder: Path, spec: ModelSpec, *, device: str, dtype: torch.dtype) -> Checkpoint:
    """The tensors of a folder, checked by their headers.

    Args:
        folder: holds config.json, whose shape is `spec`, and the weights.
        device, dtype: of what it gives.

    Raises:
        ValueError: anything about tensors, or how they are quantized, that does not fit, in one line.
    """
    file = folder / "config.json"
    return Checkpoint(
        folder,
        tensor_shapes(spec),
        device=device,
        dtype=dtype,
        tied_head=spec.tie_word_embeddings,
        packing=read_format(read_json(file), str(file)),
    )


def load_model(
    config: ModelConfig,
    *,
    device: str,
    dtype: str,
    scheme: QuantizationScheme,
    skip: Sequence[str] = (),
    ops: LayerOps | None = None,
    keep: Keep | None = None,
) -> Llama:
    """Build the configured model.

    Args:
        config: which weights.
        device: `cpu` or `cuda`.
        dtype: of weights and activations; `auto` is float32 on a CPU and the checkpoint's own on a GPU.
        scheme: how projections are stored and multiplied.
        skip: patterns of projections that stay as they are, see `Selection`.
        ops: what computes the rest of a layer; plain PyTorch where None.
        keep: told of every weight once it is final.

    Raises:
        ValueError: anything about the folder, its config or its tensors that does not fit, in one line.
    """
    spec = read_spec(config)
    max_len = spec.limit_length(config.max_model_len)
    torch_dtype = resolve_dtype(config, device=device, dtype=dtype)
    source: WeightSource
    if config.weights == "random":
        std = spec.initializer_range
        source = RandomWeights(tensor_shapes(spec), seed=config.seed, std=std, device=device, dtype=torch_dtype)
    else:
        assert config.path is not None, "ModelConfig refuses this"
        source = open_checkpoint(resolve_folder(config.path), spec, device=device, dtype=torch_dtype)
    selection = Selection(scheme, skip, spec.num_layers, torch_dtype, keep)
    start_flow = None
    if scheme.calibration is not None:
        token_ids = _calibration_windows(scheme.calibration, config, spec, max_len)

        def start_flow(embedding: Tensor) -> Flow:
            return CalibrationFlow(spec, token_ids, embedding)

    with torch.no_grad():
        return Llama(spec, source, selection, ops if ops is not None else TorchOps(), max_len, start_flow)


def _calibration_windows(text: CalibrationText, config: ModelConfig, spec: ModelSpec, max_len: int) -> Tensor:
    """[W, L] int64."""
    if text.window_tokens > max_len:
        raise ValueError(
            f"quantization.calibration.window_tokens={text.window_tokens}: must be at most {max_len}, the longest "
            "sequence of this model"
        )

    def encode(content: str) -> list[int]:
        tokenizer = load_tokenizer(config.tokenizer or config.path)
        ids: list[int] = tokenizer.encode(content, add_special_tokens=False, verbose=False)
        return ids

    return text.windows(encode, spec.vocab_size)
