"""Steps that speculate, simulated: machines of known costs, texts of known acceptance, and any policy of draft lengths.

A policy sees times with noise and outliers; it is judged by the times without. Verdicts are drawn once a position, so
that policies are compared on the same text.

`PYTHONPATH=. python tests/support/speculating_steps.py [steps [seeds]]` prints what adaptive lengths gain.
"""

from __future__ import annotations

import random
import sys
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from statistics import fmean

from minivllm.speculation.lengths.adaptive import Adaptive
from minivllm.speculation.lengths.base import DraftCandidate, DraftLengthPolicy, DraftOutcome, StepOutcome

MOST = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Costs in seconds, by default of a step that reads its weights in 1 ms and is then good for 256 tokens.

    Args:
        fixed_s: of any step.
        weights_s, token_s: of reading weights, and of computing one token: the longer of both is what counts.
        sequence_s: of a request's context, read once whatever is verified.
        switch_s: of verifying at all, where single tokens have a faster path.
        pass_s, pass_token_s: of a pass of the drafter, and of each request in it.
        one_pass: all drafts of a step come of one pass.
        asking_s: of asking the drafter for a request's drafts.
        noise: a time is off by up to this share, either way.
        spikes: share of times that come out ten times as long.
        growth: so much longer everything takes at the end, as contexts grow.
    """

    fixed_s: float = 0.0
    weights_s: float = 1e-3
    token_s: float = 1e-3 / 256
    sequence_s: float = 0.0
    switch_s: float = 0.0
    pass_s: float = 0.0
    pass_token_s: float = 0.0
    one_pass: bool = False
    asking_s: float = 2e-6
    noise: float = 0.2
    spikes: float = 0.01
    growth: float = 0.0

    def verify_s(self, num_requests: int, num_drafts: int, num_prefill_tokens: int) -> float:
        compute_s = self.token_s * (num_requests + num_drafts + num_prefill_tokens)
        switch_s = self.switch_s if num_drafts else 0.0
        return self.fixed_s + max(self.weights_s, compute_s) + self.sequence_s * num_requests + switch_s

    def draft_s(self, num_asked: int, length: int) -> float:
        num_passes = min(length, 1) if self.one_pass else length
        return num_passes * (self.pass_s + self.pass_token_s * num_asked) + self.asking_s * num_asked


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """What drafts are worth in one request.

    Args:
        chance: that a draft is accepted where those before it were, from its depth (from 1) and position.
        finds: whether anything is proposed at a position.
        nodes_per_depth: 1; more in a tree.
    """

    chance: Callable[[int, int], float]
    finds: Callable[[int], bool] = lambda position: True
    nodes_per_depth: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """Who runs when.

    Args:
        texts: of requests in seat 0, 1, .., from the start again after the last.
        num_running: requests in a step, by the tokens that were put out before.
        num_output_tokens: of a request; another follows.
        num_prompt_tokens: computed beside the first step of a request.
    """

    texts: Sequence[Text]
    num_running: Callable[[int], int]
    num_output_tokens: int = 400
    num_prompt_tokens: int = 0

    @property
    def mean_running(self) -> int:
        """About how many run in a step."""
        return round(fmean(self.num_running(num_tokens) for num_tokens in range(0, 12_000, 20)))


@dataclass(slots=True)
class _Request:
    request_id: int
    text: Text
    draws: random.Random
    num_tokens: int = 1
    uniforms: dict[int, float] = field(default_factory=dict)

    def accepts(self, depth: int) -> bool:
        position = self.num_tokens + depth
        if position not in self.uniforms:
            self.uniforms[position] = self.draws.random()
        return self.uniforms[position] < self.text.chance(depth, position)


@dataclass(slots=True)
class Run:
    """Tokens and true seconds of each step."""

    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    lengths: list[list[int]] = field(default_factory=list)

    def rate(self, after: int = 0) -> float:
        """Tokens per second of the part that follows so many tokens."""
        ends = list(accumulate(self.tokens))
        first = bisect_left(ends, after) + 1 if after else 0
        return sum(self.tokens[first:]) / sum(self.seconds[first:])


def simulate(policy: DraftLengthPolicy, machine: Machine, load: Load, num_tokens: int, seed: int = 0) -> Run:
    """Run until so many tokens are out."""
    noise, run = random.Random(f"noise {seed}"), Run()
    seats: dict[int, _Request] = {}
    num_started = total = 0
    while total < num_tokens:
        step = len(run.tokens)
        num_prefill = 0
        want = load.num_running(total)
        for seat in range(want):
            if seat not in seats or seats[seat].num_tokens >= load.num_output_tokens:
                text = load.texts[seat % len(load.texts)]
                seats[seat] = _Request(num_started, text, random.Random(f"{seed} {num_started}"))
                num_started += 1
                num_prefill += load.num_prompt_tokens if step else 0
        active = [seats[seat] for seat in range(want)]
        candidates = [
            DraftCandidate(request_id=r.request_id, num_output_tokens=r.num_tokens, limit=limit)
            for r in active
            if (limit := min(policy.num_draft_tokens, load.num_output_tokens - r.num_tokens - 1)) >= 1
        ]
        chosen = policy.choose(candidates, num_prefill + len(active) - len(candidates)) if candidates else []
        assert all(0 <= k <= c.limit for c, k in zip(candidates, chosen, strict=True)), (candidates, chosen)
        allowed = {c.request_id: k for c, k in zip(candidates, chosen, strict=True)}
        run.lengths.append(list(chosen))
        outcomes = []
        for request in active:
            k = allowed.get(request.request_id, 0)
            found = k if k and request.text.finds(request.num_tokens) else 0
            depth = -(-found // request.text.nodes_per_depth)
            good = 0
            while good < depth and request.accepts(good + 1):
                good += 1
            request.num_tokens += good + 1
            outcomes.append(
                DraftOutcome(
                    request_id=request.request_id,
                    num_allowed_tokens=k,
                    num_draft_tokens=found,
                    draft_depth=depth,
                    num_accepted_tokens=good,
                )
            )
        lengths = [k for k in allowed.values() if k]
        slower = 1 + machine.growth * total / num_tokens
        verify_s = slower * machine.verify_s(len(active), sum(o.num_draft_tokens for o in outcomes), num_prefill)
        draft_s = slower * machine.draft_s(len(lengths), max(lengths, default=0))
        run.tokens.append(sum(o.num_accepted_tokens + 1 for o in outcomes))
        run.seconds.append(verify_s + draft_s)
        total += run.tokens[-1]

        def seen(seconds: float) -> float:
            spike = 10.0 if noise.random() < machine.spikes else 1.0
            return seconds * spike * (1 + machine.noise * noise.uniform(-1, 1))

        draft_s = seen(draft_s)
        for request in active:
            if request.num_tokens >= load.num_output_tokens:
                policy.forget(request.request_id)
        policy.observe(
            StepOutcome(
                num_prefill_tokens=num_prefill,
                duration_s=seen(verify_s) + draft_s,
                draft_s=draft_s,
                outcomes=tuple(outcomes),
            )
        )
    return run


class Level(DraftLengthPolicy):
    """The same length always."""

    def __init__(self, *, num_draft_tokens: int, length: int) -> None:
        super().__init__(num_draft_tokens=num_draft_tokens)
        self.length = length

    def choose(self, candidates: Sequence[DraftCandidate], num_prefill_tokens: int) -> Sequence[int]:
        return [min(self.length, candidate.limit) for candidate in candidates]


def always(chance: float, fade: float = 1.0) -> Text:
    """Drafts that are accepted with a chance that falls by a factor with each depth."""
    return Text(chance=lambda depth, position: chance * fade ** (depth - 1))


def steady(num_running: int) -> Callable[[int], int]:
    return lambda num_tokens: num_running


def bursts(chance: float, period: int, share: float) -> Text:
    """A lookup that finds something in part of the text only."""
    return Text(chance=lambda depth, position: chance, finds=lambda position: position % period < share * period)


def waves(num_tokens: int) -> int:
    """Up to 64 requests and down to 1 again, 1,500 tokens a size."""
    return (1, 3, 9, 20, 64, 33, 12, 5)[num_tokens // 1500 % 8]


def crowd(num_tokens: int) -> int:
    """1 to 24 requests, others every 40 tokens."""
    return 1 + (num_tokens // 40 * 7919) % 24


CPU = Machine(fixed_s=4e-4, weights_s=0.0, token_s=6e-4)
# A pass of a draft model.
PASS_S = 2e-4

CASES: dict[str, tuple[Machine, Load]] = {
    "never, batch 1, roofline": (Machine(pass_s=PASS_S), Load(texts=[always(0.0)], num_running=steady(1))),
    "never, batch 1, half a step a pass": (Machine(pass_s=5e-4), Load(texts=[always(0.02)], num_running=steady(1))),
    "never, batch 1, CPU": (replace(CPU, pass_s=PASS_S), Load(texts=[always(0.02)], num_running=steady(1))),
    "never, batch 8, CPU": (replace(CPU, pass_s=PASS_S), Load(texts=[always(0.02)], num_running=steady(8))),
    "never, batch 64, compute": (Machine(token_s=1e-3 / 16), Load(texts=[always(0.02)], num_running=steady(64))),
    "never, waves": (Machine(pass_s=PASS_S, token_s=1e-3 / 32), Load(texts=[always(0.05)], num_running=waves)),
    "never, crowd, compute": (Machine(fixed_s=2e-4, token_s=1e-3 / 4), Load(texts=[always(0.02)], num_running=crowd)),
    "0.95, batch 1, roofline": (Machine(pass_s=PASS_S), Load(texts=[always(0.95)], num_running=steady(1))),
    "0.95, batch 1, CPU": (replace(CPU, pass_s=1e-4), Load(texts=[always(0.95)], num_running=steady(1))),
    "0.8, batch 1, roofline": (Machine(pass_s=PASS_S), Load(texts=[always(0.8)], num_running=steady(1))),
    "0.8, batch 1, no pass": (Machine(one_pass=True, pass_s=1e-4), Load(texts=[always(0.8)], num_running=steady(1))),
    "0.6, batch 1, pass 0.1": (Machine(pass_s=1e-4), Load(texts=[always(0.6)], num_running=steady(1))),
    "0.6, batch 1, CPU": (CPU, Load(texts=[always(0.6)], num_running=steady(1))),
    "0.8 fading, batch 1": (Machine(pass_s=PASS_S), Load(texts=[always(0.8, 0.7)], num_running=steady(1))),
    "0.55, batch 1, switch": (Machine(switch_s=7e-4), Load(texts=[always(0.55)], num_running=steady(1))),
    "0.9, batch 16, knee at 64": (Machine(token_s=1e-3 / 64), Load(texts=[always(0.9)], num_running=steady(16))),
    "0.9, batch 32, knee at 48": (Machine(token_s=1e-3 / 48), Load(texts=[always(0.9)], num_running=steady(32))),
    "0.9, batch 32, compute": (
        Machine(token_s=1e-3 / 16, pass_s=PASS_S),
        Load(texts=[always(0.9)], num_running=steady(32)),
    ),
    "0.7, batch 64, roofline": (Machine(), Load(texts=[always(0.7)], num_running=steady(64))),
    "mixed, batch 16, linear": (
        Machine(fixed_s=1e-3, weights_s=0, token_s=3e-5),
        Load(texts=[always(0.95), always(0.05)], num_running=steady(16)),
    ),
    "few good, batch 16, linear": (
        Machine(fixed_s=1e-3, weights_s=0, token_s=3e-5),
        Load(texts=[always(0.95)] + [always(0.03)] * 7, num_running=steady(16)),
    ),
    "turns good at 600": (
        Machine(pass_s=PASS_S),
        Load(texts=[Text(chance=lambda d, p: 0.9 if p > 600 else 0.02)], num_running=steady(1), num_output_tokens=4000),
    ),
    "turns bad at 1500": (
        Machine(pass_s=PASS_S),
        Load(
            texts=[Text(chance=lambda d, p: 0.02 if p > 1500 else 0.9)], num_running=steady(1), num_output_tokens=4000
        ),
    ),
    "lookup, good bursts, batch 1": (CPU, Load(texts=[bursts(0.85, 100, 0.3)], num_running=steady(1))),
    "lookup, bad bursts, batch 1": (CPU, Load(texts=[bursts(0.1, 100, 0.3)], num_running=steady(1))),
    "lookup, good, batch 16": (Machine(token_s=1e-3 / 32), Load(texts=[bursts(0.8, 50, 0.2)], num_running=steady(16))),
    "lookup, nothing": (CPU, Load(texts=[bursts(0.8, 50, 0.0)], num_running=steady(4))),
    "0.8, waves": (Machine(pass_s=PASS_S, token_s=1e-3 / 32), Load(texts=[always(0.8)], num_running=waves)),
    "0.8, crowd, per sequence": (
        Machine(pass_s=5e-5, token_s=1e-3 / 32, sequence_s=2e-5),
        Load(texts=[always(0.8)], num_running=crowd),
    ),
    "0.8, growing contexts": (Machine(pass_s=PASS_S, growth=1.0), Load(texts=[always(0.8)], num_running=steady(4))),
    "0.8, prefills beside": (
        Machine(pass_s=5e-5),
        Load(texts=[always(0.8)], num_running=steady(8), num_output_tokens=60, num_prompt_tokens=300),
    ),
    "tree of 2 a depth, 0.9": (
        Machine(one_pass=True, pass_s=1e-4),
        Load(texts=[replace(always(0.9), nodes_per_depth=2)], num_running=steady(2)),
    ),
}


def rates_of_levels(
    machine: Machine, load: Load, num_tokens: int, seed: int = 0, levels: Sequence[int] = range(MOST + 1)
) -> dict[int, float]:
    """Tokens per second of each length, in hindsight."""
    return {
        length: simulate(Level(num_draft_tokens=MOST, length=length), machine, load, num_tokens, seed).rate()
        for length in levels
    }


def main(num_steps: int = 1000, num_seeds: int = 4) -> None:
    """Print, over seeds: gain of the best fixed length over plain decoding, and what adaptive lengths make of it."""
    print(f"{'best fixed k':>44} {'its gain':>9} {'adaptive':>9} {'of best: mean':>14} {'min':>6}")
    for name, (machine, load) in CASES.items():
        num_tokens = num_steps * load.mean_running
        rows = []
        for seed in range(num_seeds):
            rates = rates_of_levels(machine, load, num_tokens, seed)
            rate = simulate(Adaptive(num_draft_tokens=MOST), machine, load, num_tokens, seed).rate()
            best = max(rates, key=rates.__getitem__)
            rows.append((best, rates[best] / rates[0], rate / rates[0], rate / rates[best]))
        best, gain, ours, share = (fmean(column) for column in zip(*rows, strict=True))
        print(
            f"{name:36} {best:7.1f} {gain:9.2f} {ours:9.2f} {share:14.3f} {min(row[3] for row in rows):6.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
