from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from draft_heads import save_eagle, save_medusa
from safetensors.torch import load_file, save_file
from tiny import VOCAB_SIZE, Oracle, first_wrong, save_tiny_llama

from minivllm import LLM, SamplingParams
from minivllm.config import SpeculationConfig

PATHS = [[0], [1], [0, 0], [0, 1], [2], [0, 0, 0], [1, 0]]
PROMPTS = [tuple(range(3 + i, 15 + 3 * i)) for i in range(3)]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def oracle(target: Path) -> Oracle:
    return Oracle(target)


@pytest.fixture(scope="module")
def heads(target: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("heads")
    return {
        "medusa": str(save_medusa(folder / "medusa", target, num_blocks=2)),
        "eagle": str(save_eagle(folder / "eagle", target)),
    }


def _generate(target: Path, speculation: SpeculationConfig | None, params: SamplingParams, **options):
    llm = LLM(str(target), speculation=speculation, **options)
    outputs = llm.generate([{"prompt_token_ids": list(prompt)} for prompt in PROMPTS], params)
    llm.engine.check()
    return [output.outputs[0] for output in outputs]


@pytest.mark.parametrize("kernels", ["numba", "torch"])
@pytest.mark.parametrize("tree", [None, PATHS, [2, 1, 1]], ids=["chain", "paths", "widths"])
@pytest.mark.parametrize("drafter", ["medusa", "eagle"])
def test_greedy_tokens_are_those_of_transformers(target, oracle, heads, drafter, tree, kernels) -> None:
    speculation = SpeculationConfig.named(
        drafter, path=heads[drafter], tree=tree, num_draft_tokens=3 if tree is None else 6
    )
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    for prompt, completion in zip(PROMPTS, _generate(target, speculation, params, kernels=kernels), strict=True):
        assert first_wrong(completion.token_ids, *oracle.greedy(prompt, 20)) == "equal"


@pytest.mark.parametrize("drafter", ["medusa", "eagle"])
def test_trees_give_the_sampled_tokens_of_no_speculation_and_their_logprobs(target, heads, drafter) -> None:
    params = SamplingParams(
        temperature=0.9, top_p=0.9, seed=5, max_tokens=24, logprobs=2, repetition_penalty=1.2, frequency_penalty=0.3
    )
    plain = _generate(target, None, params)
    for tree in (PATHS, [3, 2]):
        speculation = SpeculationConfig.named(drafter, path=heads[drafter], tree=tree, num_draft_tokens=9)
        for ours, theirs in zip(_generate(target, speculation, params), plain, strict=True):
            assert ours.token_ids == theirs.token_ids and ours.finish_reason == theirs.finish_reason
            for a, b in zip(ours.logprobs, theirs.logprobs, strict=True):
                assert list(a) == list(b) and list(a.values()) == pytest.approx(list(b.values()), abs=1e-4)


@pytest.mark.parametrize("drafter", ["medusa", "eagle"])
def test_a_truncated_vocabulary_drafts_frequent_tokens_alone(target, oracle, heads, drafter) -> None:
    size = 20
    frequent = set(load_file(Path(heads[drafter]) / "model.safetensors")["token_order"][:size].tolist())
    speculation = SpeculationConfig.named(drafter, path=heads[drafter], num_draft_tokens=2, draft_vocab_size=size)
    llm = LLM(str(target), speculation=speculation)
    seen: set[int] = set()
    propose = llm.engine.runner.parts.drafter.propose

    def watch(requests, host):
        drafts = propose(requests, host)
        seen.update(drafts.token_ids.flatten().tolist())
        return drafts

    llm.engine.runner.parts.drafter.propose = watch
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    for prompt in PROMPTS:
        tokens = llm.generate({"prompt_token_ids": list(prompt)}, params)[0].outputs[0].token_ids
        assert first_wrong(tokens, *oracle.greedy(prompt, 20)) == "equal"
    assert seen and seen <= frequent


def test_a_tree_is_accepted_more_deeply_than_its_first_branch(target, heads) -> None:
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)

    def num_accepted(**options) -> int:
        llm = LLM(str(target), speculation=SpeculationConfig.named("eagle", path=heads["eagle"], **options))
        reports = []
        for prompt in PROMPTS:
            llm.engine.add_request(list(prompt), params)
        while llm.engine.has_unfinished:
            reports.append(llm.engine.step())
        return sum(r.num_accepted_tokens for r in reports) / sum(r.num_verifications for r in reports)

    assert num_accepted(num_draft_tokens=12, tree=[4, 2]) > num_accepted(num_draft_tokens=2)


@pytest.mark.parametrize(
    "drafter, save, options, message",
    [
        ("medusa", save_medusa, {"hidden_size": 64}, "was trained for another model: its hidden_size is 64"),
        ("eagle", save_eagle, {"vocab_size": 90}, f"its vocab_size is 90, the target's is {VOCAB_SIZE}"),
        ("medusa", save_medusa, {"target_sha256": "0" * 64}, "target_sha256 in its config.json is not that of"),
        ("eagle", save_eagle, {"target_sha256": "0" * 64}, "target_sha256 in its config.json is not that of"),
        ("medusa", save_eagle, {}, r"holds \['EagleHead'\], must hold \['MedusaHeads'\]"),
        ("medusa", save_medusa, {"num_heads": 0}, "num_heads=0 in its config.json: must be 1 or more"),
    ],
    ids=["hidden-size", "vocabulary", "medusa-hash", "eagle-hash", "another-kind", "no-heads"],
)
def test_heads_of_another_model_are_refused_in_one_line(tmp_path, target, drafter, save, options, message) -> None:
    folder = save(tmp_path / "heads", target)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **options}))
    with pytest.raises(ValueError, match=message) as raised:
        LLM(str(target), speculation=SpeculationConfig.named(drafter, path=str(folder)))
    assert "\n" not in str(raised.value) and "speculation.path" in str(raised.value)


@pytest.mark.parametrize(
    "drafter, options, message",
    [
        ("medusa", {"num_draft_tokens": 5}, "speculation.num_draft_tokens: looks 5 tokens ahead"),
        ("medusa", {"tree": [1, 1, 1, 1, 1]}, "speculation.tree: looks 5 tokens ahead"),
        ("eagle", {"tree": [[0, 0]]}, r"speculation.tree: path \[0, 0\] needs \[0\], which is missing"),
        ("eagle", {"tree": "wide"}, "speculation.tree='wide': must be null, a list of widths"),
        ("eagle", {"tree": [1, [0]]}, "must be widths alone, or paths alone"),
        ("eagle", {"draft_vocab_size": 90}, r"speculation.draft_vocab_size=90: must be null or in \[1, 89\]"),
    ],
)
def test_what_heads_cannot_do_is_refused_in_one_line(target, heads, drafter, options, message) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        LLM(str(target), speculation=SpeculationConfig.named(drafter, path=heads[drafter], **options))
    assert "\n" not in str(raised.value)


def test_a_missing_tensor_is_named(tmp_path, target) -> None:
    folder = save_eagle(tmp_path / "heads", target)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: t for name, t in tensors.items() if name != "fc.weight"}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="tensor fc.weight is missing"):
        LLM(str(target), speculation=SpeculationConfig.named("eagle", path=str(folder)))


def test_a_tensor_without_a_place_is_named(tmp_path, target) -> None:
    folder = save_medusa(tmp_path / "heads", target)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "heads.0.7.weight": torch.eye(2)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="tensor heads.0.7.weight has no place in these heads"):
        LLM(str(target), speculation=SpeculationConfig.named("medusa", path=str(folder), num_draft_tokens=2))


def test_heads_count_in_the_memory_of_the_engine(target, heads) -> None:
    plain = LLM(str(target), num_blocks=8).engine.memory()
    memory = LLM(
        str(target), num_blocks=8, speculation=SpeculationConfig.named("eagle", path=heads["eagle"])
    ).engine.memory()
    assert memory.weights_bytes > plain.weights_bytes
    # A layer beside the target's two, and the final hidden state of each token.
    hidden, num_slots = 48, 8 * 16
    assert memory.kv_cache_bytes == plain.kv_cache_bytes * 3 // 2 + num_slots * hidden * torch.float32.itemsize
