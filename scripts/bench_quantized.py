#!/usr/bin/env python
"""Products of narrow weights on this CPU: ours, PyTorch's and bitsandbytes', same threads, same minute.

    ./scripts/bench_quantized                         # 4096 x 4096, about two minutes
    ./scripts/bench_quantized --shapes 11008x4096
    ./scripts/bench_quantized --shapes model          # the 24 products of a step of the reference model, in turn
    ./scripts/bench_quantized --rows 1 8 --only int4_g128,F.linear

Contestants run in turn, round by round, so that a slow minute of the machine hits all of them. A cell is the median
time of a product, and in parentheses the median over the rounds of how many times faster than `F.linear` in float32
it is. Every contestant walks through several weights of each shape, so that caches do for it what they do in a step of
a model; --copies says how many.

The floor: a weight's bytes over the highest bandwidth, or its products over the highest float32 rate, that anything
reached in this run, whichever is longer (for products of bytes a quarter of that: one instruction does four). Small
weights stay in caches, and beat the bandwidth of memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minivllm_kernels.half_linear import cpu as half
from minivllm_kernels.int4_linear import cpu as int4
from minivllm_kernels.int8_dynamic_linear import cpu as dynamic
from minivllm_kernels.int8_linear import cpu as int8
from minivllm_kernels.linear import cpu as float32

# q, k and v; the attention's output; gate and up; down. Six layers of each.
MODEL_SHAPES = [(512, 256), (256, 256), (1408, 256), (256, 704)]
MODEL_LAYERS = 6

# From a weight [out, in] float32 to a function of x [N, in] float32.
Maker = Callable[[Tensor], Callable[[Tensor], Tensor]]


@dataclass(frozen=True, kw_only=True)
class Contestant:
    make: Maker
    bytes_per_weight: float
    # Operations that take the time of one in float32.
    rate: float = 1.0


def codes_of(weight: Tensor, largest: int, group_size: int) -> tuple[Tensor, Tensor]:
    """Symmetric codes -largest..largest as int8, and the scale of each group."""
    groups = weight.unflatten(1, (-1, group_size))
    scales = groups.abs().amax(dim=2) / largest
    return (groups / scales[..., None]).round().clamp(-largest, largest).to(torch.int8).flatten(1), scales


def group_size_of(weight: Tensor, wanted: int) -> int:
    return wanted if weight.shape[1] % wanted == 0 else 32


def make_float32(weight: Tensor) -> Callable[[Tensor], Tensor]:
    panels, num_outputs = float32.pack_panels(weight), weight.shape[0]
    bias = torch.zeros(panels.shape[0] * panels.shape[2])
    return lambda x: float32.linear(x, panels, bias, num_outputs)


def make_half(weight: Tensor) -> Callable[[Tensor], Tensor]:
    packed = half.pack(weight.bfloat16())
    return lambda x: half.linear(x, packed)


def make_int4(group_size: int) -> Maker:
    def make(weight: Tensor) -> Callable[[Tensor], Tensor]:
        codes, scales = codes_of(weight, 7, group_size_of(weight, group_size))
        packed = int4.pack((codes + 8).to(torch.uint8), scales)
        return lambda x: int4.linear(x, packed)

    return make


def make_int8(weight: Tensor) -> Callable[[Tensor], Tensor]:
    packed = int8.pack(*codes_of(weight, 127, weight.shape[1]))
    return lambda x: int8.linear(x, packed)


def make_dynamic(weight: Tensor) -> Callable[[Tensor], Tensor]:
    codes, scales = codes_of(weight, 127, weight.shape[1])
    packed = dynamic.pack(codes, scales[:, 0])
    return lambda x: dynamic.linear(x, packed)


def make_torch_int4(weight: Tensor) -> Callable[[Tensor], Tensor]:
    group_size = group_size_of(weight, 128)
    codes, scales = codes_of(weight, 7, group_size)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu((codes + 8).int(), 1)
    scales_and_zeros = torch.stack([scales.t(), torch.zeros_like(scales.t())], dim=2).bfloat16().contiguous()
    # With float32 activations it takes a slow path.
    return lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(x.bfloat16(), packed, group_size, scales_and_zeros)


def make_torch_int8(weight: Tensor) -> Callable[[Tensor], Tensor]:
    codes, scales = codes_of(weight, 127, weight.shape[1])
    halves = scales[:, 0].bfloat16()
    return lambda x: torch.ops.aten._weight_int8pack_mm(x.bfloat16(), codes, halves)


def make_torch_int_mm(weight: Tensor) -> Callable[[Tensor], Tensor]:
    codes, scales = codes_of(weight, 127, weight.shape[1])
    turned, scales = codes.t(), scales[:, 0]

    def run(x: Tensor) -> Tensor:
        x_scales = x.abs().amax(dim=1, keepdim=True) / 127
        return torch._int_mm((x / x_scales).round_().to(torch.int8), turned) * x_scales * scales

    return run


def make_bitsandbytes(kind: str) -> Maker:
    def make(weight: Tensor) -> Callable[[Tensor], Tensor]:
        import bitsandbytes

        size = {"input_features": weight.shape[1], "output_features": weight.shape[0], "bias": False}
        if kind == "int8":
            layer = bitsandbytes.nn.Linear8bitLt(**size, has_fp16_weights=False)
        else:
            layer = bitsandbytes.nn.Linear4bit(**size, quant_type="nf4", compute_dtype=torch.bfloat16)
        layer.load_state_dict({"weight": weight})
        layer = layer.to("cpu").eval()
        # The type that each computes in: another costs a conversion more.
        dtype = torch.float16 if kind == "int8" else torch.bfloat16
        return lambda x: layer(x.to(dtype))

    return make


CONTESTANTS = {
    "F.linear": Contestant(make=lambda w: lambda x: F.linear(x, w), bytes_per_weight=4),
    "float32": Contestant(make=make_float32, bytes_per_weight=4),
    "bfloat16": Contestant(make=make_half, bytes_per_weight=2),
    "int8": Contestant(make=make_int8, bytes_per_weight=1),
    "int8_dynamic": Contestant(make=make_dynamic, bytes_per_weight=1, rate=4),
    "int4_g128": Contestant(make=make_int4(128), bytes_per_weight=0.5 + 2 / 128),
    "int4_g32": Contestant(make=make_int4(32), bytes_per_weight=0.5 + 2 / 32),
    "torch int8": Contestant(make=make_torch_int8, bytes_per_weight=1),
    "torch int4 g128": Contestant(make=make_torch_int4, bytes_per_weight=0.5 + 4 / 128),
    "torch int_mm": Contestant(make=make_torch_int_mm, bytes_per_weight=1, rate=4),
}
if importlib.util.find_spec("bitsandbytes") is not None:
    CONTESTANTS["bnb int8"] = Contestant(make=make_bitsandbytes("int8"), bytes_per_weight=1)
    CONTESTANTS["bnb nf4"] = Contestant(make=make_bitsandbytes("nf4"), bytes_per_weight=0.5 + 4 / 64)


def timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def read_bandwidth_bytes_per_s() -> float:
    buffer = torch.ones(64 * 1024 * 1024)
    return buffer.nbytes / min(timed(buffer.sum) for _ in range(15))


def peak_flops() -> float:
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return 2 * 1024**3 / min(timed(lambda: a @ b) for _ in range(15))


def error_of(run: Callable[[Tensor], Tensor], weight: Tensor) -> float:
    """Root mean square of what differs from the float32 weight's product, relative to it."""
    x = torch.randn(8, weight.shape[1], generator=torch.Generator().manual_seed(1))
    wanted = F.linear(x, weight)
    return float((run(x).float() - wanted).norm() / wanted.norm())


def compete(
    products: dict[str, list[Callable[[Tensor], Tensor]]], inputs: list[Tensor], rounds: int
) -> dict[str, list[float]]:
    """Seconds of a round through all weights, by contestant and round, after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in products}
    for round_index in range(rounds + 1):
        for name, runs in products.items():

            def walk(runs: list[Callable[[Tensor], Tensor]] = runs) -> None:
                for run, x in zip(runs, inputs, strict=True):
                    run(x)

            seconds = timed(walk)
            if round_index:
                times[name].append(seconds)
    return times


def parse_shapes(text: str) -> list[tuple[int, int]]:
    if text == "model":
        return MODEL_SHAPES
    if not re.fullmatch(r"\d+x\d+(,\d+x\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r}: must be model or OUTxIN,OUTxIN,...")
    return [(int(out), int(inputs)) for out, inputs in (shape.split("x") for shape in text.split(","))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=parse_shapes, default=[(4096, 4096)], help="model, or OUTxIN,OUTxIN,...")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 32, 128])
    parser.add_argument("--copies", type=int, help="weights of each shape; 4, and 6 for the model's")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", type=lambda names: names.split(","), help="contestants, with commas between")
    args = parser.parse_args()
    names = [name for name in CONTESTANTS if args.only is None or name in args.only or name == "F.linear"]
    unknown = set(args.only or ()) - set(CONTESTANTS)
    if unknown:
        parser.error(f"--only {sorted(unknown)}: must be of {', '.join(CONTESTANTS)}")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    copies = args.copies or (MODEL_LAYERS if args.shapes == MODEL_SHAPES else 4)
    shapes = args.shapes * copies
    weights = [torch.randn(shape) / shape[1] ** 0.5 for shape in shapes]
    num_weights = sum(weight.numel() for weight in weights)
    bandwidth, flops = read_bandwidth_bytes_per_s(), peak_flops()
    print(
        f"torch {torch.__version__}, {args.threads} threads, {len(shapes)} products: {shapes[: len(args.shapes)]} ..."
    )
    reached = f"torch.sum reads {bandwidth / 1e9:.1f} GB/s, torch.mm makes {flops / 1e9:.0f} GFLOP/s"
    print(f"{reached}; {args.rounds} rounds\n")
    products = {name: [CONTESTANTS[name].make(weight) for weight in weights] for name in names}
    errors = {name: error_of(runs[0], weights[0]) for name, runs in products.items()}

    def floor_us(contestant: Contestant, rows: int) -> float:
        reading, computing = contestant.bytes_per_weight / bandwidth, 2 * rows / (contestant.rate * flops)
        return 1e6 * num_weights * max(reading, computing) / len(shapes)

    print(f"{'us a product':16s} {'error':>8s} " + " ".join(f"{f'{rows} rows':>16s}" for rows in args.rows))
    cells: dict[str, list[str]] = {name: [] for name in names}
    for rows in args.rows:
        times = compete(products, [torch.randn(rows, shape[1]) for shape in shapes], args.rounds)
        for name in set(names) & {"F.linear", "float32", "bfloat16"}:
            best = min(times[name])
            bandwidth = max(bandwidth, CONTESTANTS[name].bytes_per_weight * num_weights / best)
            flops = max(flops, 2 * rows * num_weights / best)
        for name in names:
            ratio = statistics.median(a / b for a, b in zip(times["F.linear"], times[name], strict=True))
            cells[name].append(f"{1e6 * statistics.median(times[name]) / len(shapes):8.0f} ({ratio:5.2f})")
    for name in names:
        print(f"{name:16s} {errors[name]:8.1e} " + " ".join(f"{cell:>16s}" for cell in cells[name]))
    print(f"\nfloor at {bandwidth / 1e9:.1f} GB/s and {flops / 1e9:.0f} GFLOP/s")
    for name in names:
        if not name.startswith(("torch", "bnb", "float32")):
            floors = [floor_us(CONTESTANTS[name], rows) for rows in args.rows]
            print(f"{name:16s} {'':8s} " + " ".join(f"{floor:8.0f}{'':8s}" for floor in floors))


if __name__ == "__main__":
    main()
