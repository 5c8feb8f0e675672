"""Ask one engine all items: the text through its teacher-forcing door, everything else as requests of its own kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.quality.identifiers import ANSWER_TOKENS, leading_identifier
from experiments.quality.items import Items
from minivllm.engine import Engine
from minivllm.llm import LLM
from minivllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from experiments.quality.reference import Reference

# Logits that are alive at once: a step's worth of a narrow vocabulary, and enough rows of a wide one to be fast.
_LOGITS_AT_ONCE = 2**20
_LEAST_ROWS = 64


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WindowScores:
    """Of one window, [N] each, on the host: N tokens, the first of the window not among them."""

    # float32, nats
    nll: Tensor
    # int64, the likeliest token
    top1: Tensor
    # float32, nats: KL(reference || this); None without a reference.
    kl: Tensor | None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Evaluation:
    """What one engine makes of the items.

    Args:
        windows: of each window.
        generated: greedy tokens after each prompt; empty where nobody asked.
        answers: to each task item.
    """

    windows: tuple[WindowScores, ...]
    generated: tuple[tuple[int, ...], ...]
    answers: tuple[str, ...]


def evaluate(
    llm: LLM,
    items: Items,
    *,
    output_tokens: int,
    reference: Reference | None = None,
    generate: bool = True,
    keep_hidden: Callable[[int, Tensor], None] | None = None,
) -> Evaluation:
    """Ask them all.

    Args:
        llm: idle.
        items: for its tokenizer.
        output_tokens: after each prompt.
        reference: what the unquantized model made of the same items, for KL.
        generate: whether the prompts are gone on with.
        keep_hidden: is handed (window, hidden states [N, C]) of each window.

    Raises:
        ValueError: an item is longer than this engine's sequences may be.
        RuntimeError: logits that are no numbers.
    """
    windows = []
    for index, window in enumerate(items.windows):
        hidden = llm.hidden_states(window[:-1])
        if keep_hidden is not None:
            keep_hidden(index, hidden)
        windows.append(_scores(llm, window, hidden, reference, index))
    greedy = SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True)
    generated = continue_all(llm.engine, items.prompts, greedy) if generate else []
    return Evaluation(windows=tuple(windows), generated=tuple(generated), answers=_answers(llm, items))


@torch.inference_mode()
def _scores(llm: LLM, window: Sequence[int], hidden: Tensor, reference: Reference | None, index: int) -> WindowScores:
    targets = torch.tensor(window[1:], device=hidden.device)
    rows = max(_LEAST_ROWS, _LOGITS_AT_ONCE // llm.engine.runner.vocab_size)
    nll, top1, kl = [], [], []
    for start in range(0, len(targets), rows):
        at = slice(start, start + rows)
        logits = llm.compute_logits(hidden[at])
        logprobs = F.log_softmax(logits, dim=-1)
        nll.append(-logprobs.gather(1, targets[at, None])[:, 0])
        top1.append(logits.argmax(dim=-1))
        if reference is not None:
            kl.append(kl_divergence(F.log_softmax(reference.logits(index, at), dim=-1), logprobs))
    scores = WindowScores(
        nll=torch.cat(nll).cpu(), top1=torch.cat(top1).cpu(), kl=torch.cat(kl).cpu() if reference is not None else None
    )
    if not torch.isfinite(scores.nll).all():
        raise RuntimeError(f"quality: logits of window {index} are NaN or infinite; the weights are broken or overflow")
    return scores


def kl_divergence(logp: Tensor, logq: Tensor) -> Tensor:
    """KL(p || q) of each row, in nats.

    As sum p (exp(d) - 1 - d) with d = log q - log p: equal to sum -p d, since both p and q sum to 1, but every term is
    0 or more and small where d is. So two almost equal rows come to almost 0 and never below.

    Args:
        logp, logq: [M, V] float32, normalised.

    Returns:
        [M] float32.
    """
    # Where q is e^60 times p, p is nothing, and must not become nothing times infinity.
    d = (logq - logp).clamp_(max=60.0)
    return (torch.expm1(d) - d).mul_(logp.exp()).sum(dim=-1)


def continue_all(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    is_over: Callable[[tuple[int, ...]], bool] | None = None,
) -> list[tuple[int, ...]]:
    """Go on with all prompts, batched as the engine batches; the new tokens of each.

    Args:
        engine: idle; the cached prefixes are dropped first, so that the outcome has no history.
        prompts: token ids.
        params: for all.
        is_over: looks at the tokens so far, and ends a request when it has seen enough.

    Raises:
        ValueError: a prompt that can never fit.
        RuntimeError: logits that are no numbers.
    """
    engine.reset_prefix_cache()
    # A seed of their own: requests draw none from the engine's stream.
    params = dataclasses.replace(params, seed=params.seed or 0)
    ids = [engine.add_request(list(prompt), params)[0] for prompt in prompts]
    tokens: dict[int, tuple[int, ...]] = {}
    so_far: dict[int, list[int]] = {}
    while engine.has_unfinished:
        report = engine.step()
        for request_id, new_tokens in report.emitted:
            for token_id in new_tokens:
                so_far.setdefault(request_id, []).append(token_id)
                if is_over is not None and is_over(tuple(so_far[request_id])):
                    engine.stop(request_id, len(so_far[request_id]))
                    break
        for request in engine.take_finished():
            if request.error is not None:
                raise RuntimeError(f"quality: {request.error}")
            tokens[request.request_id] = tuple(request.output_token_ids)
    return [tokens[request_id] for request_id in ids]


def _answers(llm: LLM, items: Items) -> tuple[str, ...]:
    if not items.tasks:
        return ()
    decode = llm.tokenizer.decode

    def text(tokens: Sequence[int]) -> str:
        return str(decode(list(tokens), skip_special_tokens=True))

    def is_over(tokens: tuple[int, ...]) -> bool:
        return not leading_identifier(text(tokens))[1]

    greedy = SamplingParams(temperature=0.0, max_tokens=ANSWER_TOKENS)
    continued = continue_all(llm.engine, [item.context for item in items.tasks], greedy, is_over)
    return tuple(leading_identifier(text(tokens))[0] for tokens in continued)
