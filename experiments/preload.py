"""What the fork server imports once, so that no run has to: seconds of imports, and nothing that runs. No tensor, no
thread and no CUDA context may be made here, for a forked child could not use it."""

from __future__ import annotations

import torch
import transformers.models.auto.tokenization_auto

import experiments.child
import minivllm.runner.model_runner

__all__ = ["experiments", "minivllm", "torch", "transformers"]
