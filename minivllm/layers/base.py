"""The seam between a model and the kernels of its small parts: all of a layer that is neither a product with weights
nor attention.

A model asks for these once, while it loads, so that a set of kernels can prepare what it likes prepared.

Shape suffixes: N packed tokens, C hidden size, H heads, D head size, I feed-forward size.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class Norm(Protocol):
    """RMSNorm (arXiv 1910.07467) over the last dimension."""

    @property
    def weight_bytes(self) -> int: ...

    def __call__(self, x: Tensor) -> Tensor:
        """[N, C] -> [N, C], a new tensor."""
        ...

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Add x to the residual stream in place, and norm the sum: a new tensor."""
        ...


class Rotary(Protocol):
    """What happens to q and k between their projection and attention: the heads' norm where a model has one, and the
    rotation to their position."""

    @property
    def weight_bytes(self) -> int:
        """Of the heads' norm."""
        ...

    def at(self, positions: Tensor) -> Any:
        """What `rotate_` needs of a step, made once for all layers: [N] int64 -> whatever it likes."""
        ...

    def rotate_(self, qkv: Tensor, at: Any) -> None:
        """Turn q and k in place, in [N, (H + 2 K) * D] of q, k, v."""
        ...


class WritingRotary(Rotary, Protocol):
    """A rotation that can write K/V in the same pass."""

    def rotate_and_write_(self, qkv: Tensor, at: Any, kv_cache: Tensor, slot_mapping: Tensor) -> None:
        """As `rotate_`, and K/V of each token go to their slot.

        Args:
            kv_cache: [num_blocks, block_size, 2, K, D], of one layer.
            slot_mapping: [N] int64, block_id * block_size + offset; -1 writes nothing.
        """
        ...


class LayerOps(Protocol):
    """One set of kernels."""

    def make_norm(self, weight: Tensor, eps: float) -> Norm:
        """Args: weight: [C]. eps: added to the mean square."""
        ...

    def make_rotary(self, rotations: Tensor, num_heads: int, norm_weight: Tensor | None, eps: float) -> Rotary:
        """
        Args:
            rotations: [max_len, 1, D / 2] complex64, shared by the layers; see `rope.rotation_table`.
            num_heads: heads to turn, those of q and of k: the first of a row.
            norm_weight: [num_heads, D] of an RMSNorm over each head before the rotation, or None.
            eps: of that norm.
        """
        ...

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up (arXiv 2002.05202): [N, 2 * I], gate in the first half of a row -> [N, I]."""
        ...

    def row_max(self, logits_MV: Tensor) -> tuple[Tensor, Tensor]:
        """Each row's largest value, NaN where it has one, and the first place [M] int64 that holds it."""
        ...
