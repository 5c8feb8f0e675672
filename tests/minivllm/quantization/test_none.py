from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minivllm.quantization.base import LinearTarget
from minivllm.quantization.none import InOutLinear, OutInLinear, Unquantized
from minivllm.quantization.panels import PanelLinear


def _make(out_size: int = 7, in_size: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, in_size, generator=generator), torch.randn(out_size, in_size, generator=generator)
    return x, weight, torch.randn(out_size, generator=generator)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("layout", ["in_out", "out_in", "panels", None])
def test_every_layout_computes_the_same_product(layout: str | None, with_bias: bool) -> None:
    x, weight, bias = _make()
    op = Unquantized(layout).make_linear("layers.0.o", weight, bias if with_bias else None)
    wanted = x.double() @ weight.double().T + (bias if with_bias else 0)
    torch.testing.assert_close(op(x).double(), wanted, atol=1e-5, rtol=0)
    assert op.look_up is not None
    assert torch.equal(op.look_up(torch.tensor([6, 0, 6])), weight[[6, 0, 6]])
    # Panels are 32 outputs wide.
    held = (32 * 5, 32) if layout == "panels" else (35, 7)
    assert op.weight_bytes == 4 * (held[0] + (held[1] if with_bias else 0))


def test_weights_lie_in_out_on_a_cpu_unless_told_otherwise() -> None:
    _, weight, _ = _make()
    assert isinstance(Unquantized().make_linear("x", weight, None), InOutLinear)
    assert isinstance(Unquantized("out_in").make_linear("x", weight, None), OutInLinear)
    numba = LinearTarget(kernels="numba")
    assert isinstance(Unquantized(target=numba).make_linear("x", weight, None), PanelLinear)
    assert isinstance(
        Unquantized("out_in", target=LinearTarget(kernels="numba")).make_linear("x", weight, None), OutInLinear
    )


def test_an_unknown_layout_is_named() -> None:
    with pytest.raises(ValueError, match=r"^quantization\.layout='diagonal': must be null or one of in_out, out_in, p"):
        Unquantized("diagonal")
