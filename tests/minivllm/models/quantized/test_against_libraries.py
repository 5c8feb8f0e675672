"""What the libraries that write these formats pack, where they are installed (they are no dependency of ours)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from minivllm.models.fields import Fields
from minivllm.models.quantized.awq import Awq
from minivllm.models.quantized.base import Format
from minivllm.models.quantized.compressed_tensors import CompressedTensors
from minivllm.models.quantized.gptq import Gptq
from minivllm.quantization.weight import QuantizedWeight

OUT, IN, GROUP = 64, 96, 32


def _read(layout: Format, tensors: dict[str, Tensor]) -> QuantizedWeight:
    form = layout.form("m", (OUT, IN), {f"m.{suffix}": tensor for suffix, tensor in tensors.items()})  # type: ignore[misc]
    assert form is not None
    for suffix, stored in form.tensors.items():
        if stored.need == "required":
            assert stored.shape == tuple(tensors[suffix].shape), suffix
    return layout.read("m", (OUT, IN), form, lambda suffix: tensors[suffix])


def _make_weight(bits: int, num_groups: int, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """A float weight on a grid, its scales and its zeros (codes that stand for zero), [out, groups]."""
    generator = torch.Generator().manual_seed(bits + num_groups)
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    codes = torch.randint(0, top + 1, (OUT, IN), generator=generator)
    zeros = torch.full((OUT, num_groups), middle)
    if not symmetric:
        zeros = torch.randint(1, top + 1, (OUT, num_groups), generator=generator)
    scales = torch.randint(8, 16, (OUT, num_groups), generator=generator) / 64
    wide = [t.repeat_interleave(IN // num_groups, dim=1) for t in (scales, zeros)]
    return wide[0] * (codes - wide[1]), scales, zeros


@pytest.mark.parametrize(
    ("form", "bits", "group_size", "symmetric"),
    [
        ("pack-quantized", 4, GROUP, True),
        ("pack-quantized", 4, GROUP, False),
        ("pack-quantized", 4, None, True),
        ("pack-quantized", 4, None, False),
        ("pack-quantized", 8, GROUP, True),
        ("pack-quantized", 8, None, True),
        ("int-quantized", 8, GROUP, True),
        ("int-quantized", 8, None, True),
    ],
)
def test_compressed_tensors(form: str, bits: int, group_size: int | None, symmetric: bool) -> None:
    compressors: Any = pytest.importorskip("compressed_tensors.compressors")
    quantization: Any = pytest.importorskip("compressed_tensors.quantization")
    num_groups = IN // (group_size or IN)
    dense, scales, zeros = _make_weight(bits, num_groups, symmetric)
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "group_size": group_size}
    weights["strategy"] = "channel" if group_size is None else "group"
    group = {"targets": ["Linear"], "weights": weights}
    state = {"weight": dense, "weight_scale": scales}
    if not symmetric:
        state["weight_zero_point"] = (zeros - 2 ** (bits - 1)).to(torch.int8)
    compressor = compressors.BaseCompressor.get_value_from_registry(form)
    tensors = compressor.compress(state, quantization.QuantizationScheme(**group))
    config = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}
    got = _read(CompressedTensors(Fields(config, "config.json")), tensors)
    assert torch.equal(got.dequantize(), dense)


@pytest.mark.parametrize(("bits", "symmetric"), [(4, False), (4, True), (8, True)])
def test_auto_gptq(bits: int, symmetric: bool) -> None:
    qlinear: Any = pytest.importorskip("auto_gptq.nn_modules.qlinear.qlinear_cuda_old")
    dense, scales, zeros = _make_weight(bits, IN // GROUP, symmetric)
    linear = torch.nn.Linear(IN, OUT, bias=False)
    linear.weight.data = dense
    packed = qlinear.QuantLinear(bits, GROUP, IN, OUT, bias=False, weight_dtype=torch.float32)
    packed.pack(linear, scales, zeros.float(), None)
    config = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "sym": symmetric, "desc_act": False}
    got = _read(Gptq(Fields(config, "config.json")), dict(packed.named_buffers()))
    assert torch.equal(got.dequantize(), dense)


def test_auto_awq() -> None:
    gemm: Any = pytest.importorskip("awq.modules.linear.gemm")
    dense, scales, zeros = _make_weight(4, IN // GROUP, False)
    linear = torch.nn.Linear(IN, OUT, bias=False)
    linear.weight.data = dense
    packed = gemm.WQLinear_GEMM.from_linear(
        linear, 4, GROUP, scales=scales.t().contiguous(), zeros=zeros.t().contiguous()
    )
    config = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    got = _read(Awq(Fields(config, "config.json")), dict(packed.named_buffers()))
    assert torch.equal(got.dequantize(), dense)
