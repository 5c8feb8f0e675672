"""Quantized checkpoints written word by word from the description of each format, with plain loops: nothing here knows
how the loader unpacks them."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Matrix = list[list[int]]
# A Llama of two layers whose sizes fill words of 8 codes and groups of 16 inputs, and are no powers of two: neither
# groups nor rows are of a size that PyTorch's packed products round activations for.
SMALL = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
}
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True, kw_only=True)
class Weight:
    """What a checkpoint means: W[o][j] = scale[o][g] * (code[o][j] - zero[o][g]), g the group of input j.

    `codes` [out][in] and `zeros` [out][groups] are 0..2^bits - 1; `groups` [in].
    """

    bits: int
    codes: Matrix
    zeros: Matrix
    scales: list[list[float]]
    groups: list[int]

    def dense(self) -> Tensor:
        rows = []
        for codes, zeros, scales in zip(self.codes, self.zeros, self.scales, strict=True):
            rows.append([scales[g] * (code - zeros[g]) for code, g in zip(codes, self.groups, strict=True)])
        return torch.tensor(rows)


def draw_weight(
    chance: random.Random,
    num_outputs: int,
    num_inputs: int,
    *,
    bits: int = 4,
    group_size: int | None = 16,
    symmetric: bool = False,
    shuffled: Sequence[int] | None = None,
) -> Weight:
    """A random one. Scales are eighths of powers of two, so that every float type holds them, and are small enough for
    logits of a few.

    Args:
        chance: where it comes from.
        group_size: None is a whole row.
        symmetric: zeros are the middle.
        shuffled: [in], a permutation: input shuffled[i] is in group i // group_size.
    """
    size = group_size or num_inputs
    top, middle, num_groups = 2**bits - 1, 2 ** (bits - 1), num_inputs // size
    groups = [0] * num_inputs
    for place, j in enumerate(shuffled or range(num_inputs)):
        groups[j] = place // size
    return Weight(
        bits=bits,
        codes=[[chance.randint(0, top) for _ in range(num_inputs)] for _ in range(num_outputs)],
        # No zero of 0 by chance: version 1 of GPTQ borrows there, which has a test of its own.
        zeros=[
            [middle if symmetric else chance.randint(1, top) for _ in range(num_groups)] for _ in range(num_outputs)
        ],
        scales=[[chance.randint(8, 15) / 2 ** (bits + 4) for _ in range(num_groups)] for _ in range(num_outputs)],
        groups=groups,
    )


def word(codes: Sequence[int], bits: int) -> int:
    """The first code in the lowest bits, 0 where there is none."""
    value = 0
    for place, code in enumerate(codes):
        value |= code << (bits * place)
    return value


def as_int32(rows: Matrix) -> Tensor:
    """Words as safetensors keeps them."""
    return torch.tensor(
        [[struct.unpack("<i", struct.pack("<I", value & 0xFFFFFFFF))[0] for value in row] for row in rows]
    ).int()


def gptq_tensors(weight: Weight, *, version: int = 1, with_index: bool = True) -> dict[str, Tensor]:
    """qweight [in / f, out], qzeros [groups, out / f], scales [groups, out], g_idx [in]; f codes a word."""
    bits, f = weight.bits, 32 // weight.bits
    num_outputs, num_inputs, num_groups = len(weight.codes), len(weight.groups), len(weight.scales[0])
    ones = word([1] * f, bits) if version == 1 else 0
    qweight = [
        [word([weight.codes[o][f * r + i] for i in range(f)], bits) for o in range(num_outputs)]
        for r in range(num_inputs // f)
    ]
    # Version 1 takes 1 off every zero, in whole words.
    qzeros = [
        [word([weight.zeros[f * c + i][g] for i in range(f)], bits) - ones for c in range(num_outputs // f)]
        for g in range(num_groups)
    ]
    tensors = {
        "qweight": as_int32(qweight),
        "qzeros": as_int32(qzeros),
        "scales": torch.tensor([[row[g] for row in weight.scales] for g in range(num_groups)]).half(),
    }
    return tensors | ({"g_idx": torch.tensor(weight.groups).int()} if with_index else {})


def awq_tensors(weight: Weight) -> dict[str, Tensor]:
    """qweight [in, out / 8], qzeros [groups, out / 8], scales [groups, out]; in a word outputs 0 2 4 6 1 3 5 7."""

    def words(columns: Matrix, row: int) -> list[int]:
        return [word([columns[8 * c + o][row] for o in AWQ_ORDER], 4) for c in range(len(columns) // 8)]

    num_groups = len(weight.scales[0])
    return {
        "qweight": as_int32([words(weight.codes, j) for j in range(len(weight.groups))]),
        "qzeros": as_int32([words(weight.zeros, g) for g in range(num_groups)]),
        "scales": torch.tensor([[row[g] for row in weight.scales] for g in range(num_groups)]).half(),
    }


def packed_tensors(weight: Weight, *, symmetric: bool, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """compressed-tensors' `pack-quantized`: weight_packed [out, in / f], weight_zero_point [out / f, groups]."""
    bits, f = weight.bits, 32 // weight.bits
    num_outputs, num_inputs, num_groups = len(weight.codes), len(weight.groups), len(weight.scales[0])
    tensors = {
        "weight_packed": as_int32(
            [[word(row[c : c + f], bits) for c in range(0, num_inputs, f)] for row in weight.codes]
        ),
        "weight_scale": torch.tensor(weight.scales).to(dtype),
        "weight_shape": torch.tensor([num_outputs, num_inputs]),
    }
    if not symmetric:
        tensors["weight_zero_point"] = as_int32(
            [
                [word([row[g] for row in weight.zeros[r : r + f]], bits) for g in range(num_groups)]
                for r in range(0, num_outputs, f)
            ]
        )
    return tensors


def int8_tensors(weight: Weight, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """compressed-tensors' `int-quantized`: weight [out, in] int8, weight_scale [out, groups]."""
    signed = [[code - 128 for code in row] for row in weight.codes]
    return {"weight": torch.tensor(signed, dtype=torch.int8), "weight_scale": torch.tensor(weight.scales).to(dtype)}


def is_projection(name: str) -> bool:
    return name.endswith("_proj.weight")


def write_checkpoint(
    hf_model: Any,
    folder: Path,
    config: dict[str, Any],
    make: Callable[[str, int, int], tuple[Weight, dict[str, Tensor]] | None],
    select: Callable[[str], bool] = is_projection,
) -> dict[str, Weight]:
    """Save a transformers model with its projections replaced.

    Args:
        hf_model: its weights become the dense meaning of what is written, so that it says what is right.
        folder: to be made.
        config: the `quantization_config`.
        make: (module, out, in) -> the weight and its tensors by suffix; None leaves a module as it is.
        select: names of weights that are replaced.

    Returns:
        Weights by module.
    """
    state = hf_model.state_dict()
    dense, packed, weights = {}, {}, {}
    for name in filter(select, list(state)):
        module = name.removesuffix(".weight")
        made = make(module, *state[name].shape)
        if made is not None:
            weights[module] = made[0]
            dense[name] = made[0].dense()
            packed |= {f"{module}.{suffix}": tensor for suffix, tensor in made[1].items()}
    hf_model.load_state_dict(dense, strict=False)
    hf_model.save_pretrained(folder)
    tensors = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if name not in dense}
    save_file({**tensors, **packed}, folder / "model.safetensors", metadata={"format": "pt"})
    edit_config(folder, quantization_config=config)
    return weights


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
