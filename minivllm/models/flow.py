"""What flows through a model while it is being loaded, for schemes that look before they round.

A calibration text goes through each layer as soon as its operations are made, one projection after the other: so a
scheme sees what really comes in, errors of the layers before included, and only one layer is alive in full precision.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minivllm.layers.base import Norm, Rotary
from minivllm.models.spec import ModelSpec
from minivllm.quantization.base import LinearOp
from minivllm.quantization.select import Selection
from minivllm.quantization.weight import QuantizedWeight

# Rows that a wide product gets at once.
_CHUNK = 2048


class Flow:
    """Nothing flows: for schemes that look at weights alone. `CalibrationFlow` has the meaning of each step."""

    x: Tensor | None = None

    def norm(self, norm: Norm) -> None:
        """The norm before q, k and v, or before gate and up; what the projection before it gave is added first."""

    def attend(self, layer: int, qkv: LinearOp, rotary: Rotary) -> None:
        """Through q, k, v and attention."""

    def project(self, op: LinearOp) -> None:
        """Through a projection whose result the next norm adds to the residual stream."""

    def activate(self, gate_up: LinearOp) -> None:
        """Through gate and up to what `down` sees."""

    def input_scale(self, selection: Selection, name: str, weight: Tensor | QuantizedWeight) -> Tensor | None:
        """The scheme's factors for this weight, [in] float32; None for none."""
        return None

    def divide(self, scale: Tensor) -> None:
        """What comes before was divided by this."""

    def down_scale(
        self, selection: Selection, name: str, gate_up: Tensor | QuantizedWeight, down: Tensor | QuantizedWeight
    ) -> Tensor | None:
        """As `input_scale` for `down`, before gate and up are rounded, so that `up` can take the division."""
        return None


class CalibrationFlow(Flow):
    """Windows of a text on their way.

    Args:
        spec: of the model.
        token_ids: [W, L] int64.
        embedding: [V, C].
    """

    x: Tensor

    def __init__(self, spec: ModelSpec, token_ids: Tensor, embedding: Tensor) -> None:
        self._spec = spec
        self._num_windows, self._length = token_ids.shape
        device = embedding.device
        self._positions = torch.arange(self._length, device=device).repeat(self._num_windows)
        self._residual = embedding.index_select(0, token_ids.flatten().to(device))
        self._dtype = embedding.dtype
        self._added: Tensor | None = None

    def norm(self, norm: Norm) -> None:
        added, self._added = self._added, None
        normed = norm(self._residual) if added is None else norm.add(added, self._residual)
        self.x = normed.float()

    def attend(self, layer: int, qkv: LinearOp, rotary: Rotary) -> None:
        spec = self._spec
        projected = qkv(self.x.to(self._dtype)).contiguous()
        rotary.rotate_(projected, rotary.at(self._positions))
        sizes = [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads]
        by_window = projected.view(self._num_windows, self._length, sum(sizes), spec.head_dim).transpose(1, 2)
        q, k, v = (part.float() for part in by_window.split(sizes, dim=1))
        repeats = spec.num_heads // spec.num_kv_heads
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        window = spec.sliding_windows[layer]
        places = torch.arange(self._length, device=q.device)
        seen = places[:, None] >= places
        if window is not None:
            seen &= places[:, None] - places < window
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        self.x = out.transpose(1, 2).reshape(len(self._positions), -1)

    def project(self, op: LinearOp) -> None:
        self._added = op(self.x.to(self._dtype))

    def activate(self, gate_up: LinearOp) -> None:
        rows = self.x.to(self._dtype)
        self.x = torch.cat([_silu_and_mul(gate_up(chunk).float()) for chunk in rows.split(_CHUNK)])

    def input_scale(self, selection: Selection, name: str, weight: Tensor | QuantizedWeight) -> Tensor | None:
        if isinstance(weight, QuantizedWeight):
            return None
        return selection.of(name).input_scale(name, weight, self.x)

    def divide(self, scale: Tensor) -> None:
        self.x = self.x / scale

    def down_scale(
        self, selection: Selection, name: str, gate_up: Tensor | QuantizedWeight, down: Tensor | QuantizedWeight
    ) -> Tensor | None:
        if isinstance(gate_up, QuantizedWeight) or isinstance(down, QuantizedWeight):
            return None
        full = gate_up.float()
        x = torch.cat([_silu_and_mul(F.linear(chunk, full)) for chunk in self.x.split(_CHUNK)])
        return selection.of(name).input_scale(name, down, x)


def _silu_and_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=1)
    return F.silu(gate) * up
