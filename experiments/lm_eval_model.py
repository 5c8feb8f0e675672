"""lm-evaluation-harness over our engine: its tasks, asked of whatever a config composes.

    minivllm lm-eval hellaswag,arc_easy model=hf model.path=Qwen/Qwen3-0.6B quantization=int8_weight_only

Likelihoods come from the engine's teacher-forcing door (`LLM.hidden_states`), so that weights, attention and K/V cache
are those that are timed; texts that many requests share, such as the question before four answers of one token, are
read once. Generation is one call of `LLM.generate`, batched as the engine batches. Every text begins with the model's
first token, where it has one, as tokenizers of such models have it; a text that is too long loses its beginning.

Needs `pip install 'minivllm[lm_eval]'`. Source: github.com/EleutherAI/lm-evaluation-harness, `lm_eval.api.model`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from minivllm.llm import LLM
from minivllm.sampling_params import SamplingParams

# Of generation where a task says nothing.
_MAX_GEN_TOKENS = 256
_LENGTH_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING_KEYS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
# Rows of logits that are alive at once.
_ROWS = 256

# (what the harness knows it by, context, continuation), the latter two in token ids
TokenRequest = tuple[Any, list[int], list[int]]


class MinivllmLM(TemplateLM):
    """A model for lm-eval.

    Args:
        llm: with a tokenizer, idle.
    """

    def __init__(self, llm: LLM) -> None:
        super().__init__()
        self.llm = llm
        self.tokenizer = llm.tokenizer
        self.max_length = llm.engine.runner.max_model_len
        first = self.tokenizer.bos_token_id
        self._first = [] if first is None else [int(first)]

    @property
    def eot_token_id(self) -> int:
        ends = sorted(self.llm.engine.runner.eos_token_ids)
        known = self.tokenizer.eos_token_id
        return int(known if known is not None else ends[0])

    @property
    def prefix_token_id(self) -> int:
        return self._first[0] if self._first else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; the model's first token before them, unless `add_special_tokens` is false or it is there."""
        ids: list[int] = self.tokenizer.encode(string, add_special_tokens=False, verbose=False)
        if add_special_tokens is False or ids[:1] == self._first:
            return ids
        return self._first + ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    def _loglikelihood_tokens(self, requests: Sequence[TokenRequest], **_: Any) -> list[tuple[float, bool]]:
        """(sum of the continuation's logprobs, whether it is what greedy decoding gives) of each request."""
        # What is read, and who wants to know of it.
        wanted: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            inputs = (context + continuation)[:-1][-self.max_length :]
            wanted.setdefault(tuple(inputs), []).append((index, continuation[-len(inputs) :] if inputs else []))
        found: dict[int, tuple[float, bool]] = {}
        for text, askers in wanted.items():
            found.update(self._read(text, askers))
        answers = [found[index] for index in range(len(requests))]
        for request, answer in zip(requests, answers, strict=True):
            if request[0] is not None:
                self.cache_hook.add_partial("loglikelihood", request[0], answer)
        return answers

    @torch.inference_mode()
    def _read(self, inputs: tuple[int, ...], askers: Sequence[tuple[int, list[int]]]) -> dict[int, tuple[float, bool]]:
        hidden = self.llm.hidden_states(inputs) if inputs else None
        found = {}
        for index, continuation in askers:
            total, is_greedy = 0.0, True
            first = len(inputs) - len(continuation)
            for start in range(0, len(continuation), _ROWS):
                part = continuation[start : start + _ROWS]
                assert hidden is not None
                logits = self.llm.compute_logits(hidden[first + start : first + start + len(part)])
                targets = torch.tensor(part, device=logits.device)
                logprobs = logits.log_softmax(dim=-1).gather(1, targets[:, None])
                total += float(logprobs.double().sum())
                is_greedy &= bool((logits.argmax(dim=-1) == targets).all())
            found[index] = (total, is_greedy)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Sum of the logprobs of each whole text, in windows as long as the context, each token once."""
        totals = []
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs = [(None, *make_disjoint_window(window)) for window in windows]
            total = sum(logprob for logprob, _ in self._loglikelihood_tokens(pairs))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
            totals.append(total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The text after each context, up to the first of its stop strings.

        Raises:
            ValueError: a generation setting that this engine does not have.
        """
        prompts, params = [], []
        for context, settings in (request.args for request in requests):
            wanted = self._sampling(settings)
            room = self.max_length - min(wanted.max_tokens, self.max_length - 1)
            prompts.append({"prompt_token_ids": self.tok_encode(context)[-room:]})
            params.append(wanted)
        texts = []
        # Text is decoded on the way where something in it may end a request.
        is_decoded = any(wanted.stop for wanted in params)
        for request, output in zip(requests, self.llm.generate(prompts, params), strict=True):
            (completion,) = output.outputs
            if completion.error is not None:
                raise RuntimeError(completion.error)
            text = completion.text
            if not is_decoded:
                text = self.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
            self.cache_hook.add_partial("generate_until", request.args, text)
            texts.append(text)
        return texts

    def _sampling(self, settings: Mapping[str, Any]) -> SamplingParams:
        rest = dict(settings)
        lengths = [value for key in _LENGTH_KEYS if (value := rest.pop(key, None)) is not None]
        until = rest.pop("until", None) or ()
        chosen = {key: rest.pop(key) for key in _SAMPLING_KEYS if key in rest}
        if not rest.pop("do_sample", float(chosen.get("temperature") or 0.0) > 0):
            chosen["temperature"] = 0.0
        if rest:
            key, value = next(iter(rest.items()))
            known = ", ".join(("until", "do_sample", *_LENGTH_KEYS, *_SAMPLING_KEYS))
            raise ValueError(f"generation_kwargs.{key}={value!r}: no such setting here; there are {known}")
        stop = tuple(text for text in ([until] if isinstance(until, str) else until) if text)
        return SamplingParams(max_tokens=int(lengths[0]) if lengths else _MAX_GEN_TOKENS, stop=stop, **chosen)


def evaluate_tasks(
    llm: LLM,
    tasks: Sequence[str],
    *,
    include: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    bootstrap_iters: int = 1000,
) -> Mapping[str, Any]:
    """lm-eval's results of tasks.

    Args:
        llm: the model.
        tasks: names that lm-eval knows.
        include: a folder with more tasks, as YAML.
        limit: items a task; all where None.
        num_fewshot: examples before each item; the task's own number where None.
        bootstrap_iters: of standard errors that have no formula.

    Raises:
        ValueError: a task that does not exist.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = None
    if include is not None:
        # To read all that lm-eval brings takes seconds, which tasks of one's own need not wait for.
        manager = TaskManager(include_path=str(include), include_defaults=False)
    if manager is None or not all(manager.match_tasks([task]) for task in tasks):
        manager = TaskManager(include_path=None if include is None else str(include))
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown:
        raise ValueError(f"{unknown[0]}: no such task; lm-eval ls tasks lists them, and --include adds a folder")
    results: Mapping[str, Any] | None = simple_evaluate(
        model=MinivllmLM(llm),
        tasks=list(tasks),
        num_fewshot=num_fewshot,
        limit=limit,
        bootstrap_iters=bootstrap_iters,
        task_manager=manager,
        log_samples=False,
    )
    assert results is not None, "this process has rank 0"
    return results


def print_results(results: Mapping[str, Any]) -> None:
    """lm-eval's own table, of tasks and of groups."""
    from lm_eval.utils import make_table

    print(make_table(results))
    if results.get("groups"):
        print(make_table(results, "groups"))
