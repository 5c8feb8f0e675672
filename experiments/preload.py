"""What the fork server imports once, so that no run has to: seconds of imports, and nothing that runs. No tensor, no
thread and no CUDA context may be made here, for a forked child could not use it."""

from __future__ import annotations

# pyarrow looks for it when the first table is made.
import pandas
import torch
import transformers.models.auto.tokenization_auto

# A tokenizer is loaded by way of its model's config, whose module alone imports for two seconds.
import transformers.models.llama.configuration_llama
import transformers.models.mistral.configuration_mistral
import transformers.models.qwen2.configuration_qwen2
import transformers.models.qwen3.configuration_qwen3

import experiments.child
import experiments.quality.measure

# The CPU kernels: compiled once, then read from a cache.
import minivllm.attention.numba_backend
import minivllm.layers.numba_ops
import minivllm.quantization.panels
import minivllm.runner.model_runner

__all__ = ["experiments", "minivllm", "pandas", "torch", "transformers"]
