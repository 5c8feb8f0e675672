"""What loading holds beside what stays, in a fresh process, on a model of 100 MB."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from minivllm.models.llama import tensor_shapes
from minivllm.models.loader import RandomWeights
from minivllm.models.spec import ModelSpec

SCRIPT = Path(__file__).resolve().parent.parent.parent / "scripts" / "loading_memory.py"
SHAPE = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's account of a process")
def test_a_tied_head_is_never_held_twice_and_files_never_count(tmp_path: Path) -> None:
    shapes = tensor_shapes(ModelSpec.from_hf(SHAPE, "shape"))
    weights = RandomWeights(shapes, seed=0, std=0.02, device="cpu", dtype=torch.bfloat16)
    save_file({name: weights.take(name) for name in shapes}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    order = json.dumps({"model": str(tmp_path), "quantization": "int8_weight_only", "kernels": "numba"})
    done = subprocess.run([sys.executable, str(SCRIPT), "--child", order], capture_output=True, text=True, check=True)
    row = json.loads(done.stdout)
    embedding = 4 * 32000 * 512
    assert row["final"] > embedding
    # A second head, or the mapped file, would come to 1.6 and more.
    assert row["peaks"]["head"] - row["baseline"] < 1.45 * row["final"], row
