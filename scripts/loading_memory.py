#!/usr/bin/env python
"""How much memory loading takes beside what stays: peak resident memory of a fresh process, by stage.

    .venv/bin/python scripts/loading_memory.py
    .venv/bin/python scripts/loading_memory.py --model FOLDER --quantization int4 --kernels torch

By default it writes bfloat16 checkpoints of random weights in the shape of Qwen3-0.6B, with a tied and with a free
head, and loads each in every precision. Before it measures, a process loads a model of a few kilobytes the same way, so
that libraries are imported and kernels compiled; what is resident then is the baseline, a few hundred megabytes.
Columns, in MB (10^6 bytes): `final`, what the weights of the model take; the most that was resident until the
`embedding` was there, the `layers`, the `head`: the peak; `own`, (peak - baseline) / final; `process`, peak / (baseline
+ final).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

QWEN3_0_6B = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "dtype": "bfloat16",
}
TINY = {**QWEN3_0_6B, "vocab_size": 64, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1} | {
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 64,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak resident memory while a model loads.")
    parser.add_argument("--model", action="append", help="a folder; random checkpoints where none is named")
    parser.add_argument("--quantization", nargs="+", default=["none", "int8_weight_only", "int4"])
    parser.add_argument("--kernels", nargs="+", default=["numba"], help="execution.kernels: numba, torch")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(_measure(**json.loads(arguments.child))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        models = arguments.model or [_write(Path(scratch) / name, name == "tied") for name in ("tied", "free")]
        head = "model             quantization      kernels  baseline   final  embedding  layers    head   own  process"
        print(f"{head}  seconds")
        for model in models:
            for quantization in arguments.quantization:
                for kernels in arguments.kernels:
                    _show(model, quantization, kernels)


def _show(model: str, quantization: str, kernels: str) -> None:
    order = json.dumps({"model": model, "quantization": quantization, "kernels": kernels})
    command = [sys.executable, __file__, "--child", order]
    done = subprocess.run(command, capture_output=True, text=True)
    label = f"{Path(model).name:<16}  {quantization:<16}  {kernels:<7}"
    if done.returncode:
        print(f"{label}  {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
        return
    row = json.loads(done.stdout)
    baseline, final, peak = row["baseline"], row["final"], row["peaks"]["head"]
    peaks = "  ".join(f"{row['peaks'][stage] / 1e6:>{width}.0f}" for stage, width in _STAGES.items())
    print(
        f"{label}  {baseline / 1e6:>8.0f}  {final / 1e6:>6.0f}  {peaks}  {(peak - baseline) / final:>4.2f}  "
        f"{peak / (baseline + final):>7.2f}  {row['seconds']:>7.1f}",
        flush=True,
    )


_STAGES = {"embedding": 9, "layers": 6, "head": 6}


def _measure(model: str, quantization: str, kernels: str) -> dict[str, Any]:
    import torch

    from minivllm.config import ModelConfig, QuantizationConfig
    from minivllm.models import load_model
    from minivllm.quantization.base import LinearTarget
    from minivllm.runner.kernels import make_ops

    torch.set_num_threads(1)
    component = QuantizationConfig.named(quantization).scheme
    peaks: dict[str, int] = {}

    def keep(name: str, value: object) -> None:
        # The first weight that is told of comes after the embedding was read; the last norm after the layers.
        if name == "layers.0.input_norm":
            peaks["embedding"] = _resident("VmHWM")
        if name == "norm":
            peaks["layers"] = _resident("VmHWM")

    def load(config: ModelConfig) -> Any:
        scheme = component.make("quantization", target=LinearTarget(kernels=kernels))
        ops = make_ops(kernels)
        options = {"device": "cpu", "dtype": "float32", "scheme": scheme, "skip": ("lm_head",), "ops": ops}
        return load_model(config, **options, keep=keep)

    load(ModelConfig(weights="random", shape=TINY))
    baseline = _resident("VmRSS")
    # From here on the high-water mark is of the load alone.
    Path("/proc/self/clear_refs").write_text("5")
    start_s = time.perf_counter()
    made = load(ModelConfig(path=model))
    seconds = time.perf_counter() - start_s
    peaks["head"] = _resident("VmHWM")
    return {"baseline": baseline, "final": made.weights_bytes, "peaks": peaks, "seconds": seconds}


def _resident(key: str) -> int:
    """Bytes, from the kernel's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def _write(folder: Path, tied: bool) -> str:
    import torch
    from safetensors.torch import save_file

    from minivllm.models.llama import tensor_shapes
    from minivllm.models.loader import RandomWeights
    from minivllm.models.spec import ModelSpec

    config = {**QWEN3_0_6B, "tie_word_embeddings": tied}
    shapes = tensor_shapes(ModelSpec.from_hf(config, "shape"))
    weights = RandomWeights(shapes, seed=0, std=0.02, device="cpu", dtype=torch.bfloat16)
    folder.mkdir()
    save_file({name: weights.take(name) for name in shapes}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


if __name__ == "__main__":
    main()
