"""The sampler on the device against the engine's own on the CPU: the same token for the same logits, parameters, seed
and position."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from gpu_checks.check import Check, Piece, poisoned, word

from minivllm.sampling.batch import SamplingBatch, SamplingRow
from minivllm.sampling.random import fold_seed
from minivllm.sampling.sampler import sample as sample_on_cpu
from minivllm.sampling_params import SamplingParams
from minivllm_kernels.sample.kernel import SamplingState, argmax, logprobs, sample

# What a row may want; numbers that float32 holds exactly.
_WANTS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.75},
    "hot": {"temperature": 1.5},
    "top-k": {"temperature": 1.0, "top_k": 50},
    "top-p": {"temperature": 1.0, "top_p": 0.875},
    "min-p": {"temperature": 1.0, "min_p": 0.0625},
    "all filters": {"temperature": 0.75, "top_k": 100, "top_p": 0.9375, "min_p": 0.03125},
    "penalties": {"temperature": 1.0, "repetition_penalty": 1.25, "presence_penalty": 0.5, "frequency_penalty": 0.25},
    "greedy with penalties": {"temperature": 0.0, "repetition_penalty": 1.5},
}
# Where rounding decides, two right samplers may differ: one draw in this many at most.
_ALLOWED_DIFFERENCES = 1e-3


def pieces(check: Check) -> Iterator[Piece]:
    tiny = check.tiny
    for dtype in check.dtypes:
        for rows, vocab in [(2, 300)] if tiny else [(1, 151_936), (64, 151_936), (256, 4096), (7, 32_001)]:
            yield f"argmax {word(dtype)}: M{rows} V{vocab}", partial(_argmax, check, dtype, rows, vocab)
    for dtype in (torch.float32,) if tiny else (torch.float32, torch.bfloat16):
        for vocab in (300,) if tiny else (151_936, 4099):
            for want in ("temperature", "all filters", "mixed") if tiny else (*_WANTS, "mixed"):
                yield f"sample {word(dtype)}: {want} V{vocab}", partial(_sample, check, dtype, vocab, want)
            yield f"sample {word(dtype)}: alone V{vocab}", partial(_alone, check, dtype, vocab)
    yield "logprobs: against float64", partial(_logprobs, check)


def _logits(check: Check, rows: int, vocab: int, dtype: torch.dtype) -> torch.Tensor:
    """Peaked like a model's: most of the weight on some dozens of tokens."""
    return torch.randn((rows, vocab), generator=check.generator(rows + vocab), device=check.device).mul_(3).to(dtype)


def _argmax(check: Check, dtype: torch.dtype, rows: int, vocab: int) -> None:
    logits = _logits(check, rows, vocab, dtype)
    # A tie, whose first is meant; rows that have no number.
    logits[0, [vocab // 3, vocab - 1]] = 40.0
    if rows > 4:
        logits[1, vocab // 2] = float("nan")
        logits[2, 5] = float("inf")
        logits[3] = float("-inf")
    out = poisoned((rows,), torch.int64, check.device)
    argmax(logits, out_tokens=out)
    # The first of equals, which torch does not promise on every device.
    wide = logits.float().cpu()
    expected = wide.numpy().argmax(axis=1)
    best = wide.numpy().max(axis=1)
    expected[~np.isfinite(best)] = -1
    wrong = int((out.cpu().numpy() != expected).sum())
    check.holds(f"argmax {word(dtype)}: M{rows} V{vocab}", wrong == 0, f"{wrong} of {rows} differ" if wrong else "")


class _Rows:
    """Requests of a store, and the same for the CPU's sampler."""

    def __init__(self, check: Check, wants: list[str], vocab: int) -> None:
        self.params = [SamplingParams(**_WANTS[want]) for want in wants]
        rng, device, length = np.random.default_rng(vocab), check.device, 40
        self.tokens = rng.integers(0, min(vocab, 60), size=(len(wants), length + 1), dtype=np.int32)
        self.positions = rng.integers(20, length, size=len(wants), dtype=np.int32)
        self.seeds = [int(seed) for seed in rng.integers(0, 2**62, size=len(wants))]
        num_prompt = 15

        def column(name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.tensor([getattr(p, name) for p in self.params], dtype=dtype, device=device)

        self.state = SamplingState(
            temperature=column("temperature"),
            top_k=column("top_k", torch.int32),
            top_p=column("top_p"),
            min_p=column("min_p"),
            repetition=column("repetition_penalty"),
            presence=column("presence_penalty"),
            frequency=column("frequency_penalty"),
            seed=torch.tensor([np.uint64(fold_seed(s)).astype(np.int64) for s in self.seeds], device=device),
            num_prompt_tokens=torch.full((len(wants),), num_prompt, dtype=torch.int32, device=device),
        )
        self.device = device
        self.for_cpu = [
            SamplingRow(
                params=params,
                seed=seed,
                position=int(position),
                prompt_token_ids=row[:num_prompt],
                output_token_ids=row[num_prompt:position],
            )
            for params, seed, position, row in zip(self.params, self.seeds, self.positions, self.tokens, strict=True)
        ]

    def draw(self, logits: torch.Tensor, of: list[int]) -> torch.Tensor:
        """Tokens of some rows, each with its logits; one row of padding after them."""
        out = poisoned((len(of) + 1,), torch.int64, self.device)
        rows = torch.tensor([*of, -1], dtype=torch.int32, device=self.device)
        positions = torch.tensor([*self.positions[of].tolist(), 0], dtype=torch.int32, device=self.device)
        sample(
            torch.cat([logits[of], logits[:1]]), rows=rows, positions=positions, state=self.state,
            tokens=torch.from_numpy(self.tokens).to(self.device), out_tokens=out,
        )  # fmt: skip
        return out


def _sample(check: Check, dtype: torch.dtype, vocab: int, want: str) -> None:
    num_rows = 4 if check.tiny else 256 if vocab < 10_000 else 64
    names = list(_WANTS)
    rows = _Rows(check, [names[i % len(names)] if want == "mixed" else want for i in range(num_rows)], vocab)
    logits = _logits(check, num_rows, vocab, dtype)
    out = rows.draw(logits, list(range(num_rows)))
    expected = sample_on_cpu(logits.cpu().float(), SamplingBatch.make(rows.for_cpu, "cpu")).token_ids
    differing = int((out[:-1].cpu() != expected).sum())
    name = f"sample {word(dtype)}: {want} V{vocab}"
    allowed = math.ceil(_ALLOWED_DIFFERENCES * num_rows)
    check.within(name, differing, allowed, unit="tokens that differ", detail=f"of {num_rows}, from the CPU's")
    check.holds(f"{name} padding", int(out[-1]) == 0)


def _alone(check: Check, dtype: torch.dtype, vocab: int) -> None:
    """The same token whatever shares the batch."""
    num_rows = 3 if check.tiny else 33
    names = list(_WANTS)
    rows = _Rows(check, [names[i % len(names)] for i in range(num_rows)], vocab)
    logits = _logits(check, num_rows, vocab, dtype)
    together = rows.draw(logits, list(range(num_rows)))[:-1].tolist()
    alone = [int(rows.draw(logits, [i])[0]) for i in range(num_rows)]
    check.holds(f"sample {word(dtype)}: alone V{vocab}", alone == together)


def _logprobs(check: Check) -> None:
    rows, vocab, k = (2, 300, 3) if check.tiny else (33, 151_936, 20)
    logits = _logits(check, rows, vocab, torch.float32)
    chosen = torch.arange(rows, device=check.device) * 3
    ids, values = logprobs(logits, chosen, num_likeliest=k)
    expected = logits.double().log_softmax(dim=-1)
    error = (values.double() - expected.gather(1, ids)).abs().max().item()
    check.within("logprobs: against float64", error, 1e-4, unit="nats")
    right = torch.equal(ids[:, 0], chosen) and torch.equal(ids[:, 1:], expected.topk(k, dim=-1).indices)
    check.holds("logprobs: chosen, then likeliest", right)
