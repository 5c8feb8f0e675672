"""Speculation on the GPU's runner, whole, under Triton's interpreter: its tokens are those of the other runner, and
where drafts are points, those of no speculation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import VOCAB_SIZE, Oracle, first_wrong, save_tiny_llama

from minivllm import LLM, SamplingParams
from minivllm.component import Component
from minivllm.config import SpeculationConfig
from minivllm.plan import StepReport
from minivllm.runner.device_chains import MOST_UNREAD
from minivllm.speculation.base import DraftRequest, HostDrafter
from minivllm.speculation.model import DraftHost, Drafts, ModelDrafter
from minivllm.speculation.target import DraftTarget
from minivllm.speculation.tree import DraftTree

SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
PROMPTS = [[3, 4, 5, 3, 4, 5, 3], [6], [7, 8, 9, 10, 11]]
# So much that the tokens change if a penalty overlooks a draft.
KINDS = [
    SamplingParams(
        temperature=1.0, top_k=40, presence_penalty=-2, frequency_penalty=-2, seed=2, max_tokens=4, ignore_eos=True
    ),
    SamplingParams(temperature=0, presence_penalty=2, frequency_penalty=2, max_tokens=4, ignore_eos=True),
]


class PlantedDrafts(HostDrafter):
    """Drafts what will come, but for every fourth position.

    Args:
        texts: whole requests, prompt and output.
    """

    def __init__(self, *, target: DraftTarget, texts: Sequence[Sequence[int]]) -> None:
        super().__init__(target=target)
        self._texts = texts
        self._of_request: dict[int, Sequence[int]] = {}

    def start(self, request_id: int, token_ids: Sequence[int]) -> None:
        (self._of_request[request_id],) = [t for t in self._texts if tuple(t[: len(token_ids)]) == tuple(token_ids)]

    def propose(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        found = []
        for request in requests:
            first, text = request.num_tokens, self._of_request[request.request_id]
            # A request now and then has fewer than it may.
            places = range(first, min(len(text), first + request.num_draft_tokens - first % 2))
            found.append([(text[place] + (place % 4 == 1)) % VOCAB_SIZE for place in places])
        return found


class PlantedTrees(ModelDrafter):
    """Trees of which the last path is right, and all else is wrong.

    Args:
        texts: as above.
        tree: widths.
        is_chain: call it so; all widths are 1.
    """

    wants_features = True

    def __init__(
        self,
        *,
        target: DraftTarget,
        texts: Sequence[Sequence[int]],
        tree: Sequence[int],
        is_chain: bool = False,
    ) -> None:
        super().__init__(target=target)
        self._is_chain = is_chain
        self._host_drafts = PlantedDrafts(target=target, texts=texts)
        self._tree = DraftTree.from_widths(tree)
        self._texts = self._host_drafts._of_request

    def start(self, request_id: int, token_ids: Sequence[int]) -> None:
        self._host_drafts.start(request_id, token_ids)

    def propose(self, requests: Sequence[DraftRequest], host: DraftHost) -> Drafts:
        tree = self._tree
        counts = np.array([min(request.num_draft_tokens, tree.num_nodes) for request in requests])
        token_ids = torch.zeros((len(requests), tree.num_nodes), dtype=torch.int64)
        for i, request in enumerate(requests):
            text = self._texts[request.request_id]
            path = tree.path(int(counts[i]) - 1)
            for node in range(counts[i]):
                place = request.num_tokens + tree.depths[node] - 1
                right = text[place] if place < len(text) else 0
                token_ids[i, node] = right if node in path else (right + 1 + tree.rank(node)) % VOCAB_SIZE
        return Drafts(counts=counts, token_ids=token_ids, tree=None if self._is_chain else tree)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("target"), **SHAPE)


@pytest.fixture(scope="module")
def draft_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model than the target, but for the first tokens that it likes."""
    return save_tiny_llama(tmp_path_factory.mktemp("draft"), **SHAPE, num_hidden_layers=1)


def _make_llm(folder: Path, speculation: SpeculationConfig | None = None, **options: Any) -> LLM:
    options = {"kernels": "triton", "num_blocks": 14, "block_size": 4, "max_num_seqs": 3, **options}
    return LLM(str(folder), speculation=speculation or SpeculationConfig(), **options)


def _greedy(num_tokens: int = 5, **more: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, **more)


def _run(llm: LLM, params: Any, prompts: Sequence[Sequence[int]] = PROMPTS) -> tuple[list[Any], list[StepReport]]:
    """What each request got, tokens or failure, and the steps."""
    given = params if isinstance(params, list) else [params] * len(prompts)
    ids = [llm.engine.add_request(list(prompt), one)[0] for prompt, one in zip(prompts, given, strict=True)]
    steps = []
    while llm.engine.has_unfinished:
        steps.append(llm.engine.step())
    llm.engine.check()
    by_id = {request.request_id: request for request in llm.engine.take_finished()}
    return [tuple(by_id[one].output_token_ids) or by_id[one].error for one in ids], steps


def _named(name: str, **options: Any) -> SpeculationConfig:
    return SpeculationConfig.named(name, **options)


def _planted(wanted: Sequence[Sequence[int]], num_draft_tokens: int, **tree: Any) -> SpeculationConfig:
    texts = [tuple(prompt) + tuple(tokens) for prompt, tokens in zip(PROMPTS, wanted, strict=False)]
    drafter = Component(
        target=f"{__name__}.{PlantedTrees.__name__ if tree else PlantedDrafts.__name__}",
        kwargs={"texts": texts, **tree},
    )
    return SpeculationConfig(drafter=drafter, num_draft_tokens=num_draft_tokens)


@pytest.fixture(scope="module")
def greedy_tokens(folder: Path) -> list[tuple[int, ...]]:
    """Of transformers; and where two are equally likely, of the other runner."""
    oracle, (found, _) = Oracle(folder), _run(_make_llm(folder, kernels="torch"), _greedy())
    for tokens, prompt in zip(found, PROMPTS, strict=True):
        assert first_wrong(tokens, *oracle.greedy(tuple(prompt), 5)) in ("equal", "tie")
    return found


@pytest.mark.parametrize(
    ("drafter", "num_drafts", "engine"),
    [
        ("planted", 4, {}),
        ("planted", 2, {"batch_invariant": True}),
        # Preemptions and parts of prompts beside verifications.
        ("planted", 1, {"num_blocks": 10, "block_size": 2, "max_num_batched_tokens": 4, "prefix_caching": False}),
        ("itself", 3, {}),
        ("draft_model", 2, {}),
        ("early_exit", 2, {}),
        ("trees", 6, {}),
    ],
    ids=lambda value: str(value) if not isinstance(value, dict) else "-".join(value) or "plain",
)
def test_greedy_tokens_are_those_of_transformers_whoever_drafts(
    folder: Path,
    draft_folder: Path,
    greedy_tokens: list[tuple[int, ...]],
    drafter: str,
    num_drafts: int,
    engine: dict[str, Any],
) -> None:
    speculation = {
        "planted": lambda: _planted(greedy_tokens, num_drafts),
        "trees": lambda: _planted(greedy_tokens, num_drafts, tree=[2, 2]),
        "itself": lambda: _named("draft_model", path=str(folder), num_draft_tokens=num_drafts),
        "draft_model": lambda: _named("draft_model", path=str(draft_folder), num_draft_tokens=num_drafts),
        "early_exit": lambda: _named("early_exit", exit_layer=1, num_draft_tokens=num_drafts),
    }[drafter]()
    llm = _make_llm(folder, speculation, **engine)
    got, steps = _run(llm, _greedy())
    assert got == greedy_tokens
    num_draft_tokens, num_accepted_tokens = (
        sum(getattr(step, name) for step in steps) for name in ("num_draft_tokens", "num_accepted_tokens")
    )
    assert num_draft_tokens > 0 and (num_accepted_tokens > 0 or drafter in ("draft_model", "early_exit"))
    # The target drafts for itself: all that is drafted stands.
    assert drafter != "itself" or num_accepted_tokens == num_draft_tokens
    assert (llm.engine.scheduler.num_preemptions > 0) == ("num_blocks" in engine)


class _PaddedVerifications:
    """Stands for the CUDA graphs: runs what they hold, on all rows of the bucket."""

    def __init__(self, steps: Any) -> None:
        self._step = steps.verify
        self.counts: set[int] = set()

    def replay(self, size: int, num_drafts: int, need: Any) -> Any:
        self.counts.add(num_drafts)
        return self._step.compute(size, num_drafts, need)


def test_verifications_that_read_keys_once_pad_with_queries_of_nobody(
    folder: Path, greedy_tokens: list[tuple[int, ...]]
) -> None:
    llm = _make_llm(folder, _planted(greedy_tokens, 4), max_num_seqs=4)
    steps = llm.engine.runner._steps
    graphs = _PaddedVerifications(steps)
    steps._few, steps.verify_sizes, steps.verify_graphs = 0, (4,), graphs
    assert _run(llm, _greedy())[0] == greedy_tokens
    assert graphs.counts == {4}


@pytest.mark.parametrize(
    ("tree", "few"),
    [({"tree": [2, 1]}, 9), ({"tree": [1, 1], "is_chain": True}, 9), ({"tree": [1, 1], "is_chain": True}, 0)],
    ids=["trees", "beside-each-other", "padded"],
)
def test_hidden_states_are_kept_where_the_other_runner_keeps_them(
    folder: Path, greedy_tokens: list[tuple[int, ...]], tree: dict[str, Any], few: int
) -> None:
    speculation = _planted(greedy_tokens, 4, **tree)
    ours, theirs = (_make_llm(folder, speculation, kernels=kernels) for kernels in ("triton", "torch"))
    ours.engine.runner._steps._few = few
    found = [_run(llm, _greedy(4), PROMPTS[:2])[0] for llm in (ours, theirs)]
    assert found[0] == found[1]
    kept, wanted = (llm.engine.runner.parts.features for llm in (ours, theirs))
    assert wanted.any() and torch.allclose(kept, wanted, atol=1e-4)


@pytest.mark.parametrize("drafts_itself", [True, False], ids=["itself", "another"])
def test_drafts_of_one_launch_are_those_of_launch_after_launch(
    folder: Path, draft_folder: Path, greedy_tokens: list[tuple[int, ...]], drafts_itself: bool
) -> None:
    speculation = _named("draft_model", path=str(folder if drafts_itself else draft_folder), num_draft_tokens=2)
    _, theirs = _run(_make_llm(folder, speculation, kernels="torch"), _greedy(6))
    llm = _make_llm(folder, speculation, max_num_seqs=4)
    runner = llm.engine.runner
    drafter = runner.parts.drafter
    chains = runner._steps.chains_of(drafter)
    # Steps of three are padded.
    chains._sizes = (4,)
    asked = []

    def draft_at_once(requests: Sequence[DraftRequest], num_read: np.ndarray) -> torch.Tensor:
        asked.extend(request.num_tokens - read for request, read in zip(requests, num_read.tolist(), strict=True))
        return chains.run(requests, num_read)

    drafter.draft_at_once, drafter.most_unread = draft_at_once, MOST_UNREAD
    got, ours = _run(llm, _greedy(6))
    assert [tokens[:5] for tokens in got] == greedy_tokens
    counts = [[(step.num_draft_tokens, step.num_accepted_tokens) for step in steps] for steps in (ours, theirs)]
    assert counts[0] == counts[1] and set(asked) == {2 if drafts_itself else 1}


@pytest.mark.parametrize("tree", [{}, {"tree": [2, 1]}], ids=["chains", "trees"])
def test_drafts_that_are_points_change_no_draw_and_penalties_see_them(folder: Path, tree: dict[str, Any]) -> None:
    wanted, _ = _run(_make_llm(folder, kernels="torch"), KINDS, PROMPTS[:2])
    got, steps = _run(_make_llm(folder, _planted(wanted, 4 if tree else 2, **tree)), KINDS, PROMPTS[:2])
    assert got == wanted
    assert sum(step.num_accepted_tokens for step in steps) > 0


@pytest.mark.parametrize("name", ["draft_model", "early_exit"])
def test_drawn_drafts_and_what_becomes_of_them_are_the_other_runners(
    folder: Path, draft_folder: Path, name: str
) -> None:
    options = {"path": str(folder)} if name == "draft_model" else {"exit_layer": 1}
    speculation = _named(name, num_draft_tokens=2, **options)
    params = [
        SamplingParams(temperature=0.8, top_k=7, presence_penalty=0.3, seed=1, max_tokens=5, ignore_eos=True),
        SamplingParams(temperature=0.7, seed=3, max_tokens=5, ignore_eos=True),
        _greedy(4, repetition_penalty=1.3),
    ]
    wanted, their_steps = _run(_make_llm(folder, speculation, kernels="torch"), params)
    got, our_steps = _run(_make_llm(folder, speculation), params)
    assert got == wanted
    ours, theirs = (
        [(step.num_draft_tokens, step.num_accepted_tokens) for step in steps] for steps in (our_steps, their_steps)
    )
    assert ours == theirs and sum(accepted for _, accepted in ours) > 0


def test_made_up_verdicts_are_those_of_the_other_runner(folder: Path) -> None:
    speculation = _named("synthetic", num_draft_tokens=3, acceptance=0.6)
    wanted, _ = _run(_make_llm(folder, speculation, kernels="torch"), _greedy())
    assert _run(_make_llm(folder, speculation), _greedy())[0] == wanted


def test_a_second_request_takes_over_prefixes_that_were_drafted(folder: Path) -> None:
    llm = _make_llm(folder, _named("draft_model", path=str(folder), num_draft_tokens=2))
    first, _ = _run(llm, _greedy(), PROMPTS[:1])
    output = llm.generate({"prompt_token_ids": PROMPTS[0] + list(first[0])}, _greedy(2))[0]
    wanted, _ = _run(_make_llm(folder, kernels="torch"), _greedy(7), PROMPTS[:1])
    assert output.num_cached_tokens == 8 and output.outputs[0].token_ids == wanted[0][5:]


def test_logprobs_come_with_every_token_that_stands(folder: Path) -> None:
    params = [_greedy(4, logprobs=2), _greedy(4, logprobs=0)]
    prompts = [{"prompt_token_ids": p} for p in PROMPTS[:2]]
    ours = _make_llm(folder, _named("draft_model", path=str(folder))).generate(prompts, params)
    theirs = _make_llm(folder, kernels="torch").generate(prompts, params)
    for mine, other in zip(ours, theirs, strict=True):
        a, b = mine.outputs[0].logprobs, other.outputs[0].logprobs
        for at, wanted in zip(a, b, strict=True):
            assert at == pytest.approx(wanted, abs=1e-4)


def test_logits_that_are_no_numbers_end_their_request_and_leave_numbers_behind(folder: Path) -> None:
    llm = _make_llm(folder, _named("ngram", num_draft_tokens=2))
    runner = llm.engine.runner
    with torch.no_grad():
        runner.model.lm_head.weight.fill_(float("nan"))
    runner.parts.kv_cache.fill_(float("nan"))
    got, _ = _run(llm, _greedy(), PROMPTS[:1])
    assert "NaN or infinite" in got[0]
    assert torch.isfinite(runner.parts.kv_cache).flatten(2).all(dim=2).all(dim=0).sum() == 2


def test_drafting_and_verifying_are_timed(folder: Path) -> None:
    _, steps = _run(_make_llm(folder, _named("synthetic", num_draft_tokens=1)), _greedy(3), PROMPTS[:1])
    assert [step.draft_s is None for step in steps] == [step.num_verifications == 0 for step in steps]
    assert all(step.verify_s > step.draft_s > 0 for step in steps if step.draft_s is not None)
