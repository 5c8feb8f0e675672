"""Which projection gets which scheme: the configured one, or none where the user left it out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from minivllm.quantization.base import IntegerScheme, LinearOp, QuantizationScheme
from minivllm.quantization.linears import make_quantized_linear
from minivllm.quantization.none import Unquantized
from minivllm.quantization.precision import Precision
from minivllm.quantization.weight import QuantizedWeight

# (name as in `make_linear`, or of a norm, and what stands there in the end).
Keep = Callable[[str, Tensor | QuantizedWeight], None]


class Selection:
    """The scheme of each projection, and an account of what was quantized.

    Args:
        scheme: of those that no pattern names.
        skip: names or patterns of projections that stay as they are, such as `lm_head`, `*.down`, `layers.0.*`; `first`
            and `last` are the first and the last layer.
        num_layers, dtype: of the model.
        keep: told of every weight once it is final, for whoever saves it.

    Raises:
        ValueError: a pattern that names no projection.
    """

    def __init__(
        self,
        scheme: QuantizationScheme,
        skip: Sequence[str],
        num_layers: int,
        dtype: torch.dtype = torch.float32,
        keep: Keep | None = None,
    ) -> None:
        self.scheme = scheme
        # (weights, bytes) of the projections that are covered, and of those that are in codes.
        self._covered = (0, 0)
        self._quantized = (0, 0)
        self._in_checkpoint: set[str] = set()
        self._plain = scheme if isinstance(scheme, Unquantized) else Unquantized(target=scheme.target)
        self._dtype = dtype
        self._keep = keep
        names = [f"layers.{i}.{part}" for i in range(num_layers) for part in ("qkv", "o", "gate_up", "down")]
        words = {"first": "layers.0.*", "last": f"layers.{num_layers - 1}.*"}
        self._skipped = set()
        for pattern in skip:
            found = [name for name in (*names, "lm_head") if fnmatchcase(name, words.get(pattern, pattern))]
            if not found:
                raise ValueError(
                    f"quantization.skip={pattern!r}: names no projection: there are {names[0]} to {names[-1]} and "
                    "lm_head, and the words first and last"
                )
            self._skipped.update(found)

    def of(self, name: str) -> QuantizationScheme:
        """The scheme of one projection."""
        return self._plain if name in self._skipped else self.scheme

    def keep(self, name: str, value: Tensor | QuantizedWeight) -> None:
        if self._keep is not None:
            self._keep(name, value)

    def make_linear(
        self, name: str, weight: Tensor | QuantizedWeight, bias: Tensor | None, x: Tensor | None = None
    ) -> LinearOp:
        """As `QuantizationScheme.make_linear`, by the scheme of this name."""
        scheme = self.of(name)
        size = weight.shape[0] * weight.shape[1]
        if isinstance(weight, QuantizedWeight):
            self._in_checkpoint.add(weight.kind)
        if isinstance(scheme, IntegerScheme) and not isinstance(weight, QuantizedWeight):
            weight = scheme.quantize(name, weight, x)
            self.keep(name, weight)
            op = make_quantized_linear(weight, bias, scheme.target)
        else:
            if isinstance(weight, Tensor):
                # Columns or rows that were scaled are in float32.
                weight = weight.to(self._dtype)
            self.keep(name, weight)
            op = scheme.make_linear(name, weight, bias, x)
        num_bytes = op.weight_bytes - (0 if bias is None else bias.nbytes)
        if name not in self._skipped:
            self._covered = (self._covered[0] + size, self._covered[1] + num_bytes)
        if scheme is not self._plain or isinstance(weight, QuantizedWeight):
            self._quantized = (self._quantized[0] + size, self._quantized[1] + num_bytes)
        return op

    def precision(self) -> Precision:
        """The account so far."""
        name = type(self.scheme).__module__.rpartition(".")[2]
        if self._in_checkpoint:
            name = f"{' and '.join(sorted(self._in_checkpoint))} in the checkpoint"
        return Precision(
            name=name,
            num_weights=self._covered[0],
            num_bytes=self._covered[1],
            num_quantized_weights=self._quantized[0],
            num_quantized_bytes=self._quantized[1],
        )
