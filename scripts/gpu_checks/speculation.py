"""Speculation: its greedy tokens are those of the CPU without it, whoever drafts; and what a step costs that verifies k
drafts of every request, beside one that verifies none. What that is worth follows from how often drafts stand, which
random weights cannot tell: it is given, and tried with verdicts made up."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from gpu_checks.check import Check, Piece
from gpu_checks.engine import release
from gpu_checks.models import ROOT, SHAPES, end_all, greedy, make_llm, num_parameters, requests
from gpu_checks.tokens import check_tokens

from minivllm import LLM
from minivllm.component import Component
from minivllm.config import SpeculationConfig
from minivllm.plan import StepReport
from minivllm.speculation.lengths.base import DraftCandidate, DraftLengthPolicy

_MODEL, _CONTEXT, _MOST = "Qwen3-8B", 1024, 8
_ACCEPTANCES = (0.6, 0.8)


class Chosen(DraftLengthPolicy):
    """As many drafts as are asked for from outside."""

    wanted = 0

    def choose(self, candidates: Sequence[DraftCandidate], num_prefill_tokens: int) -> Sequence[int]:
        return [min(Chosen.wanted, candidate.limit) for candidate in candidates]


def pieces(check: Check) -> Iterator[Piece]:
    if check.section == "speculation":
        draft = str(ROOT / "experiments" / "assets" / "reference-draft")
        drafters: list[tuple[str, dict[str, Any]]] = [("ngram", {"num_draft_tokens": 4})]
        if not check.tiny:
            drafters += [
                ("draft_model", {"path": draft, "num_draft_tokens": 3}),
                ("early_exit", {"exit_layer": 3, "num_draft_tokens": 2}),
            ]
        for name, options in drafters:
            for graphs in (True,) if check.tiny else (True, False):
                title = f"speculation tokens: {name} cuda_graphs={graphs}".lower()
                given = {"speculation": SpeculationConfig.named(name, **options)}
                yield (
                    title,
                    partial(check_tokens, check, title, given | ({} if check.tiny else {"cuda_graphs": graphs})),
                )
    else:
        yield f"speculation {_MODEL}: cost of a step", partial(_costs, check)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Steps:
    """Steps of one kind: their median, and tokens that each request got in one."""

    step_s: float
    tokens: float
    num_compilations: int


class _Load:
    """Requests that decode side by side, as many drafts and verdicts as one likes."""

    def __init__(self, check: Check, llm: LLM, batch: int) -> None:
        self._check, self._llm, self._batch = check, llm, batch
        context = 6 if check.tiny else _CONTEXT
        Chosen.wanted = 0
        prompts = requests(batch, [context], llm.engine.runner.vocab_size, seed=batch)
        params = greedy(24 if check.tiny else 1500)
        self._ids = [llm.engine.add_request(one["prompt_token_ids"], params)[0] for one in prompts]
        while not self._only_decodes(llm.engine.step()):
            assert llm.engine.has_unfinished, "the requests ended before all of them decoded"

    def _only_decodes(self, report: StepReport) -> bool:
        return report.num_prefill_tokens == 0 and report.num_decode_tokens >= self._batch

    def measure(self, num_drafts: int, acceptance: float) -> _Steps:
        """Of steps that verify so many drafts of every request."""
        self._llm.engine.runner.parts.drafter._acceptance = [acceptance]
        Chosen.wanted = num_drafts
        warm_up, count = (0, 1) if self._check.tiny else (4, 24)
        reports = [self._llm.engine.step() for _ in range(warm_up + count)][warm_up:]
        got = sum(len(tokens) for report in reports for _, tokens in report.emitted)
        return _Steps(
            step_s=statistics.median(report.duration_s for report in reports),
            tokens=got / (self._batch * len(reports)),
            num_compilations=sum(report.num_compilations for report in reports),
        )

    def end(self) -> None:
        Chosen.wanted = 0
        end_all(self._llm, self._ids)


def expected_tokens(num_drafts: int, acceptance: float) -> float:
    """Tokens that a verification gives, each draft standing so often if those before it do (arXiv 2211.17192, (1))."""
    return (1 - acceptance ** (num_drafts + 1)) / (1 - acceptance)


def floor_s(check: Check, batch: int, num_drafts: int) -> float | None:
    """Seconds to read weights and K/V once, or to multiply all queries with all weights: whichever is longer."""
    if check.peaks is None:
        return None
    weights, kv = num_parameters(SHAPES[_MODEL])
    num_bytes = 2 * (weights + batch * _CONTEXT * kv)
    flops = 2 * weights * batch * (1 + num_drafts)
    return max(num_bytes / check.peaks.read_bps, flops / check.peaks.flops["bfloat16"])


def _costs(check: Check) -> None:
    speculation = SpeculationConfig(
        drafter=Component(target="minivllm.speculation.synthetic.Synthetic"),
        num_draft_tokens=2 if check.tiny else _MOST,
        length=Component(target=f"{__name__}.Chosen"),
    )
    llm = make_llm(check, _MODEL, max_num_seqs=3 if check.tiny else 32, speculation=speculation)
    for batch in (2,) if check.tiny else (1, 8, 32):
        load = _Load(check, llm, batch)
        # Nothing stands, so contexts stay as they are: the cost is the same.
        found = {count: load.measure(count, 0.0) for count in range(speculation.num_draft_tokens + 1)}
        for count, steps in found.items():
            ratio = steps.step_s / found[0].step_s
            worth = ", ".join(f"{expected_tokens(count, p) / ratio:.3g}x at {p}" for p in _ACCEPTANCES)
            floor = floor_s(check, batch, count)
            check.figure(
                f"speculation {_MODEL}: step of {count} drafts, batch {batch}", steps.step_s * 1e3, "ms",
                floor=None if floor is None else floor * 1e3, detail=f"{ratio:.3g} of a step without; {worth}",
            )  # fmt: skip
        for acceptance in _ACCEPTANCES:
            best = max(found, key=lambda count: expected_tokens(count, acceptance) / found[count].step_s)  # noqa: B023
            tried, implied = load.measure(best, acceptance), expected_tokens(best, acceptance) / found[best].step_s
            check.figure(
                f"speculation {_MODEL}: speed-up at acceptance {acceptance}, batch {batch}",
                tried.tokens / tried.step_s * found[0].step_s, "x",
                detail=f"{best} drafts, {tried.tokens:.3g} tokens a step; implied {implied * found[0].step_s:.3g}x",
            )  # fmt: skip
        compiled = sum(steps.num_compilations for steps in found.values())
        name = f"speculation compilations: batch {batch}"
        check.holds(name, compiled == 0, f"{compiled} while measured" if compiled else "")
        load.end()
    del llm
    release()
