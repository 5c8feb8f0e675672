"""The models that ship with the project, as the engine loads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from minivllm.models import Attend, Llama

FOLDER = Path(__file__).parents[3] / "experiments" / "assets" / "reference-target"


def test_the_reference_model_matches_transformers(
    load: Callable[..., Llama], make_dense_attend: Callable[..., Attend]
) -> None:
    from transformers import AutoModelForCausalLM

    model = load(FOLDER)
    hf_model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32, attn_implementation="eager")
    token_ids = torch.randint(0, model.spec.vocab_size, (40,), generator=torch.Generator().manual_seed(0))
    layers: list[torch.Tensor] = []
    with torch.inference_mode():
        attend = make_dense_attend(model.spec, [40])
        hidden = model.forward(token_ids, torch.arange(40), attend, lambda _, h: layers.append(h))
        logits = model.compute_logits(hidden)
        theirs = hf_model(token_ids[None], output_hidden_states=True)
    for ours, hf_hidden in zip(layers[:-1], theirs.hidden_states[1:-1], strict=True):
        torch.testing.assert_close(ours, hf_hidden[0], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(logits, theirs.logits[0], atol=1e-4, rtol=0)
