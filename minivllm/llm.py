"""The Python API: names and meaning follow vLLM's offline API."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minivllm.clock import VirtualClock, WallClock
from minivllm.config import EngineConfig
from minivllm.detokenizer import TextStream
from minivllm.engine import Engine
from minivllm.models.tokenizer import load_tokenizer
from minivllm.request import FinishReason, Request
from minivllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)
Prompt = str | Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionOutput:
    """One continuation of a prompt.

    Args:
        index: which of the `n`.
        text: decoded output, special tokens left out, cut before the stop string.
        token_ids: all sampled tokens, the end token included.
        logprobs: where asked for, {token: logprob} a token.
        finish_reason: `stop`, `length`, `abort`, or `error` (then `error` says why).
        stop_reason: the stop string that ended the text.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[dict[int, float], ...] | None
    finish_reason: str | None
    stop_reason: str | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestOutput:
    """A prompt and its continuations."""

    request_id: int
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    num_cached_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamDelta:
    """What is new of one continuation. Text may lag behind the tokens while a character or a possible stop string is
    incomplete; the last delta, which has a finish reason, carries the rest."""

    prompt_index: int
    index: int
    token_ids: tuple[int, ...]
    text: str
    finish_reason: str | None
    error: str | None = None


class LLM:
    """A model behind an engine.

    Args:
        model: a Hugging Face folder or hub id.
        options: fields of the configs in `minivllm.config`, by name: `block_size`, `max_num_seqs`, `dtype`, ...;
            `quantization`, `speculation` and `preemption` by the name of a scheme, drafter or mode, or whole
            (`SpeculationConfig.named`).

    Raises:
        ValueError: an option that does not exist or does not fit, a model that cannot be loaded.
    """

    def __init__(self, model: str | None = None, **options: Any) -> None:
        options = {"path": model, **options} if model is not None else options
        self._build(EngineConfig.from_flat(**options))

    @classmethod
    def from_config(cls, config: EngineConfig) -> LLM:
        self = cls.__new__(cls)
        self._build(config)
        return self

    def _build(self, config: EngineConfig) -> None:
        from minivllm.runner.make import make_runner

        self.config = config
        clock = WallClock() if config.simulation is None else VirtualClock()
        self.engine = Engine(config, make_runner(config, clock), clock)
        self._tokenizer: Any = None

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers, loaded when it is first needed; in a simulation, what can be had without it.

        Raises:
            ValueError: there is none beside the model.
        """
        if self._tokenizer is None:
            path = self.config.model.tokenizer or self.config.model.path
            self._tokenizer = load_tokenizer(path, host_only=self.config.simulation is not None)
        return self._tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Complete prompts; one `RequestOutput` each, in their order.

        Args:
            prompts: strings, or mappings with `prompt_token_ids`.
            sampling_params: for all, or one a prompt.

        Raises:
            ValueError: a prompt that is empty or can never fit. Nothing has run then.
        """
        batch = _Batch(self, prompts, sampling_params)
        while batch.num_open:
            batch.step()
        return [batch.output(i) for i in range(len(batch.prompts))]

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> Iterator[StreamDelta]:
        """As `generate`, token by token. Closing the iterator early aborts what is unfinished."""
        batch = _Batch(self, prompts, sampling_params)
        return batch.deltas()

    def score(self, prompt_token_ids: Sequence[int]) -> Tensor:
        """The logits of each next token of a text that the model is made to read, whatever it would have said itself.

        It goes through the engine's own attention, K/V cache and chunks, and leaves the prefix cache empty.

        Args:
            prompt_token_ids: N >= 1 of them, at most `max_model_len`.

        Returns:
            [N, vocab] float32 on the engine's device; row i is about token i + 1.

        Raises:
            ValueError: requests are unfinished, or the text is none that this engine can read.
        """
        return self.compute_logits(self.hidden_states(prompt_token_ids))

    def hidden_states(self, prompt_token_ids: Sequence[int]) -> Tensor:
        """As `score`, before the head: [N, C] after the final norm, in the dtype of the activations. N rows of a wide
        vocabulary may be more than memory holds; `compute_logits` makes some at a time."""
        from minivllm.runner.score import hidden_states

        return hidden_states(self.engine, prompt_token_ids)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """[M, C] of `hidden_states` -> [M, vocab] float32."""
        from minivllm.runner.score import logits

        return logits(self.engine, hidden)

    def chat(
        self, messages: Sequence[Mapping[str, str]], sampling_params: SamplingParams | None = None
    ) -> RequestOutput:
        """Complete a conversation through the tokenizer's chat template.

        Raises:
            ValueError: the tokenizer has no chat template.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError(
                f"model.tokenizer={self.config.model.tokenizer or self.config.model.path!r}: has no chat template; "
                "use generate() with a prompt of your own, or a tokenizer that has one"
            )
        ids = self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=True)
        ids = ids["input_ids"] if isinstance(ids, Mapping) else ids
        return self.generate({"prompt_token_ids": list(ids)}, sampling_params)[0]


class _Batch:
    """One call of `generate` or `stream`: which request belongs to which prompt, and the text of each."""

    def __init__(self, llm: LLM, prompts: Any, sampling_params: Any) -> None:
        self.llm = llm
        self.prompts: list[Prompt] = [prompts] if isinstance(prompts, (str, Mapping)) else list(prompts)
        if sampling_params is None:
            sampling_params = SamplingParams()
        if isinstance(sampling_params, SamplingParams):
            sampling_params = [sampling_params] * len(self.prompts)
        if len(sampling_params) != len(self.prompts):
            raise ValueError(f"sampling_params: {len(sampling_params)} of them for {len(self.prompts)} prompts")
        self.params: list[SamplingParams] = list(sampling_params)
        self.prompt_token_ids = [self._encode(i, prompt) for i, prompt in enumerate(self.prompts)]
        # Text is decoded while tokens come only where something looks at it; a tokenizer only where there is text.
        self.has_text = any(isinstance(prompt, str) for prompt in self.prompts) or any(p.stop for p in self.params)
        self.place: dict[int, tuple[int, int]] = {}
        self.ids: list[tuple[int, ...]] = []
        self.streams: dict[int, TextStream] = {}
        self.finished: dict[int, Request] = {}
        try:
            for token_ids, params in zip(self.prompt_token_ids, self.params, strict=True):
                self._add(token_ids, params)
        except ValueError:
            self.abort()
            raise

    def _encode(self, index: int, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return list(self.llm.tokenizer.encode(prompt))
        if not isinstance(prompt, Mapping) or "prompt_token_ids" not in prompt:
            raise ValueError(f"prompts[{index}]={prompt!r}: must be a string or {{'prompt_token_ids': [...]}}")
        return list(prompt["prompt_token_ids"])

    def _add(self, token_ids: list[int], params: SamplingParams) -> None:
        ids = self.llm.engine.add_request(token_ids, params)
        for index, request_id in enumerate(ids):
            self.place[request_id] = (len(self.ids), index)
            if self.has_text:
                self.streams[request_id] = TextStream(self.llm.tokenizer, params.stop)
        self.ids.append(ids)

    @property
    def num_open(self) -> int:
        return len(self.place) - len(self.finished)

    def step(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """One engine step; who got which tokens."""
        engine = self.llm.engine
        report = engine.step()
        if report.idle_until_s is not None:
            engine.clock.sleep_until(report.idle_until_s)
        emitted = tuple((request_id, self._until_stop(request_id, tokens)) for request_id, tokens in report.emitted)
        for request in engine.take_finished():
            self.finished[request.request_id] = request
            if request.error is not None:
                logger.error("%s", request.error)
        return emitted

    def _until_stop(self, request_id: int, token_ids: tuple[int, ...]) -> tuple[int, ...]:
        """New tokens up to the one whose text completes a stop string, with which the request ends."""
        stream = self.streams.get(request_id)
        prompt_index, _ = self.place[request_id]
        if stream is None or not self.params[prompt_index].stop:
            return token_ids
        for count, token_id in enumerate(token_ids, start=1):
            if stream.push((token_id,)):
                self.llm.engine.stop(request_id, stream.num_tokens)
                return token_ids[:count]
        return token_ids

    def deltas(self) -> Iterator[StreamDelta]:
        try:
            while self.num_open:
                before = set(self.finished)
                emitted = dict(self.step())
                ended = {i: r for i, r in self.finished.items() if i not in before}
                for request_id in {**emitted, **ended}:
                    yield self._delta(request_id, emitted.get(request_id, ()), ended.get(request_id))
        finally:
            self.abort()

    def _delta(self, request_id: int, token_ids: tuple[int, ...], ended: Request | None) -> StreamDelta:
        prompt_index, index = self.place[request_id]
        stream, text = self.streams.get(request_id), ""
        if stream is not None:
            if not self.params[prompt_index].stop:
                stream.push(token_ids)
            if ended is not None:
                stream.finish()
            text = stream.unsent(final=ended is not None)
        reason = ended.finish_reason if ended is not None else None
        return StreamDelta(
            prompt_index=prompt_index,
            index=index,
            token_ids=token_ids,
            text=text,
            finish_reason=None if reason is None else reason.value,
            error=None if ended is None else ended.error,
        )

    def abort(self) -> None:
        for request_id in self.place:
            if request_id not in self.finished:
                self.llm.engine.abort(request_id)
        self.llm.engine.take_finished()

    def output(self, prompt_index: int) -> RequestOutput:
        prompt = self.prompts[prompt_index]
        ids = self.ids[prompt_index]
        return RequestOutput(
            request_id=ids[0],
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_token_ids=tuple(self.prompt_token_ids[prompt_index]),
            outputs=tuple(self._completion(request_id) for request_id in ids),
            num_cached_tokens=self.finished[ids[0]].num_cached_tokens,
        )

    def _completion(self, request_id: int) -> CompletionOutput:
        request = self.finished[request_id]
        prompt_index, index = self.place[request_id]
        stream = self.streams.get(request_id)
        text = ""
        if stream is not None:
            if not self.params[prompt_index].stop:
                stream.push(request.output_token_ids)
            stream.finish()
            text = stream.text
        assert isinstance(request.finish_reason, FinishReason)
        return CompletionOutput(
            index=index,
            text=text,
            token_ids=tuple(request.output_token_ids),
            logprobs=tuple(request.logprobs) if request.sampling_params.logprobs is not None else None,
            finish_reason=request.finish_reason.value,
            stop_reason=stream.stopped_by if stream is not None else None,
            error=request.error,
        )
