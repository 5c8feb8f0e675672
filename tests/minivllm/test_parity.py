"""The whole engine against transformers: every family, ragged batches, chunks, prefix hits, small blocks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import Oracle, first_wrong

from minivllm import LLM, SamplingParams

SHAPE = {
    "vocab_size": 89,
    "hidden_size": 48,
    "intermediate_size": 60,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64, "rope_theta": 1e4,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}
FAMILIES = {
    "Llama": ("Llama", {}),
    "Llama-linear": ("Llama", {"rope_parameters": LINEAR}),
    "Llama-llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "Llama-yarn": ("Llama", {"rope_parameters": YARN}),
    "Mistral-window-20": ("Mistral", {"sliding_window": 20}),
    "Qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "Qwen3": ("Qwen3", {"head_dim": 16}),
}


def _save(folder: Path, family: str, changes: dict) -> Path:
    import transformers

    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **changes})
    getattr(transformers, f"{family}ForCausalLM")(config).eval().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_tokens_and_logprobs_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """Five ragged prompts, 65 tokens each, in chunks of 24 tokens over blocks of 4, then again over the cache."""
    family, changes = FAMILIES[name]
    folder = _save(tmp_path, family, changes)
    oracle = Oracle(folder)
    llm = LLM(str(folder), block_size=4, num_blocks=400, max_num_batched_tokens=24)
    stem = list(range(3, 80))
    prompts = [tuple(stem[:n]) for n in (1, 13, 44, 45, 77)]
    params = SamplingParams(temperature=0, max_tokens=65, ignore_eos=True, logprobs=5)
    for again in (False, True):
        outputs = llm.generate([{"prompt_token_ids": list(p)} for p in prompts], params)
        for prompt, output in zip(prompts, outputs, strict=True):
            completion = output.outputs[0]
            assert first_wrong(completion.token_ids, *oracle.greedy(prompt, 65)) == "equal"
            assert not again or output.num_cached_tokens >= (len(prompt) - 1) // 4 * 4
            with torch.no_grad():
                logits = oracle.model(torch.tensor([[*prompt, *completion.token_ids]])).logits[0, len(prompt) - 1 : -1]
            wanted = torch.log_softmax(logits.double(), -1)
            for place, given in enumerate(completion.logprobs):
                for token_id, logprob in given.items():
                    assert abs(logprob - float(wanted[place, token_id])) < 1e-4
