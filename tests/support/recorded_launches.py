"""Run the GPU's runner without a GPU and without computing anything: each Triton launch is only looked at.

What a launch would be compiled for is what Triton itself says of its arguments: types, constants, and which integers
and pointers 16 divides. So it can be told whether a step of some load would have to compile what the warm-up did not.
Run as a program, with TRITON_INTERPRET unset: prints the launches of the load that the warm-up did not have, a line
each, and how many it had. A member of conf/model with a shape gives one layer of it, for 256 requests:

    PYTHONPATH=.:kernels:tests/support python tests/support/recorded_launches.py /tmp --block-size 16 --dtype float16 \\
        --model conf/model/random_qwen3_0_6b.yaml --quantization int4
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
import yaml
from tiny import VOCAB_SIZE, save_tiny_llama
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from minivllm import LLM, SamplingParams, triton_support
from minivllm.config import QuantizationConfig, SpeculationConfig

_BACKEND = make_backend(GPUTarget("cuda", 90, 32))
_KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.7, "seed": 1},
    {"temperature": 1.0, "seed": 2, "top_p": 0.9},
    {"temperature": 0.0, "repetition_penalty": 1.2},
    {"temperature": 0.0, "logprobs": 2},
]
_seen: set[str] = set()


def _record(kernel: Any, *args: Any, grid: object, warmup: bool, **kwargs: Any) -> None:
    bind = create_function_from_signature(kernel.signature, kernel.params, _BACKEND)
    _, kinds, options = bind(*args, **kwargs)
    _seen.add(f"{kernel.__name__} {kinds} {sorted(options.items())}")


def _stand_in_for_the_gpu() -> None:
    triton.JITFunction.run = _record
    triton_support.is_interpreted = lambda: True
    # Nothing is computed, and what is read back must be a token.
    torch.empty, torch.empty_like = torch.zeros, torch.zeros_like
    torch.nn.functional.linear = lambda x, weight, bias=None: torch.zeros(x.shape[0], weight.shape[0], dtype=x.dtype)
    for name in ("synchronize", "reset_peak_memory_stats"):
        setattr(torch.cuda, name, lambda: None)
    torch.cuda.Event = lambda enable_timing: SimpleNamespace(
        record=lambda: None, synchronize=lambda: None, elapsed_time=lambda ended: 1.0
    )


def main(
    folder: Path,
    block_size: int,
    batch_invariant: bool,
    dtype: str,
    member: Path | None,
    quantization: str,
    drafter: str,
    length: str,
) -> None:
    """Warm up, remember what was launched, serve a load of all kinds of requests, and tell what came on top."""
    _stand_in_for_the_gpu()
    options: dict[str, Any] = {"max_num_seqs": 13, "max_num_batched_tokens": 1024}
    if member is None:
        shape = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 2048}
        shape |= {"hidden_size": 64, "intermediate_size": 96}
        options["path"] = str(save_tiny_llama(folder, **shape))
    else:
        shape = yaml.safe_load(member.read_text(encoding="utf-8"))["shape"] | {"num_hidden_layers": 1}
        options = {"weights": "random", "shape": shape, "max_num_seqs": 256, "max_num_batched_tokens": 8192}
    speculation = SpeculationConfig.named(
        drafter,
        num_draft_tokens=3,
        length=length,
        **{"draft_model": {"path": options.get("path")}, "early_exit": {"exit_layer": 1}}.get(drafter, {}),
    )
    llm = LLM(
        kernels="triton",
        dtype=dtype,
        block_size=block_size,
        batch_invariant=batch_invariant,
        overlap=not speculation.enabled,
        speculation=speculation,
        max_model_len=2048,
        num_blocks=64 * 2048 // block_size,
        quantization=QuantizationConfig.named(
            quantization, skip=(), **({"group_size": 32} if quantization == "int4" else {})
        ),
        **options,
    )
    runner = llm.engine.runner
    runner._on_gpu = True
    # Graphs launch what computing the same steps launches.
    runner._warm_up(replace(llm.config, execution=replace(llm.config.execution, cuda_graphs=False)))
    warm = set(_seen)
    draws = random.Random(0)
    for _ in range(3):
        for _ in range(draws.choice([3, 16]) if member is None else 300):
            params = SamplingParams(max_tokens=draws.choice([1, 3, 8]), ignore_eos=True, **draws.choice(_KINDS))
            length = draws.choice([1, 2, 7, 16, 33, 100, 500, 1100])
            llm.engine.add_request([draws.randrange(3, VOCAB_SIZE) for _ in range(length)], params)
        while llm.engine.has_unfinished:
            llm.engine.step()
        llm.engine.take_finished()
    for late in sorted(_seen - warm):
        print(f"late: {late}")
    print(f"warm: {len(warm)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--batch-invariant", action="store_true")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--drafter", default="off")
    parser.add_argument("--length", default="fixed")
    args = parser.parse_args()
    main(
        args.folder,
        args.block_size,
        args.batch_invariant,
        args.dtype,
        args.model,
        args.quantization,
        args.drafter,
        args.length,
    )
