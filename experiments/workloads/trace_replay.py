"""Recorded traffic again: the arrivals and lengths of a trace, and the prefixes that prompts share, where it says so.

Most traces keep no text. Their prompts are made up in the right length, and their outputs are as long as recorded only
where the model's end token is ignored, as `sampling.ignore_eos` has it by default.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from experiments.points import located
from experiments.workloads.base import Streams, WorkloadItem
from experiments.workloads.prompts import PromptSource, TextPrompts
from experiments.workloads.traces.base import TraceRow, wrong
from experiments.workloads.traces.formats import read_trace
from minivllm.component import is_count, require

TOO_LONG = ("error", "skip", "clip")
FAILED = ("drop", "keep")
# Blocks that are kept: those that many prompts begin with are asked for again and again, and can all be made anew.
_KEPT_BLOCKS = 512
# Whose name a block has.
_HASH, _SESSION = 0, 1


@dataclass(frozen=True, kw_only=True)
class TraceReplay:
    """Some of a trace's requests, as fast as they came or faster.

    Args:
        path: of the file.
        format: one of `traces.formats.FORMATS`, `auto` to recognize it, or the import path of a `TraceReader`.
        prompts: where made-up tokens come from: `random`, `lengths_only` (the cheapest), `heldout` or a .jsonl file.
            Text is drawn from few places: now and then it repeats by chance.
        time_scale: 2 sends twice as fast.
        start_s, duration_s: which part of the trace, on its own clock, from its first request on; null goes on to
            the end.
        max_requests: at most so many of what is left.
        max_prompt_tokens, max_output_tokens: longer ones are `too_long`.
        too_long: `error`; `skip` leaves the request out; `clip` keeps the beginning of the prompt, and shortens
            the output.
        failed: requests without output (or prompt) tokens, as BurstGPT has them: `drop`, or `keep` and send them
            for one token.
        hash_block_tokens: of a block of `hash_ids`. Tokens behind the last named block are a prompt's own.
        sessions_share_prefixes: every prompt of a session is the beginning of one text, for traces whose prompts hold
            the conversation so far.
        concurrency: clients of a closed loop, which forgets when requests came; null replays by the clock.
    """

    path: str
    format: str = "auto"
    prompts: str = "random"
    time_scale: float = 1.0
    start_s: float = 0.0
    duration_s: float | None = None
    max_requests: int | None = None
    max_prompt_tokens: int | None = None
    max_output_tokens: int | None = None
    too_long: str = "error"
    failed: str = "drop"
    hash_block_tokens: int = 512
    sessions_share_prefixes: bool = False
    concurrency: int | None = None

    def __post_init__(self) -> None:
        for name in ("path", "format", "prompts"):
            value = getattr(self, name)
            require(isinstance(value, str) and bool(value), f"workload.{name}", value, "text")
        for name in ("max_requests", "max_prompt_tokens", "max_output_tokens", "concurrency"):
            value = getattr(self, name)
            require(value is None or is_count(value), f"workload.{name}", value, "null or a whole number, 1 or more")
        block = self.hash_block_tokens
        require(is_count(block), "workload.hash_block_tokens", block, "a whole number, 1 or more")
        require(_positive(self.time_scale), "workload.time_scale", self.time_scale, "above 0")
        require(self.start_s == 0 or _positive(self.start_s), "workload.start_s", self.start_s, "0 or more")
        duration = self.duration_s
        require(duration is None or _positive(duration), "workload.duration_s", duration, "null or above 0")
        require(self.too_long in TOO_LONG, "workload.too_long", self.too_long, f"one of {', '.join(TOO_LONG)}")
        require(self.failed in FAILED, "workload.failed", self.failed, f"one of {', '.join(FAILED)}")
        share = self.sessions_share_prefixes
        require(isinstance(share, bool), "workload.sessions_share_prefixes", share, "true or false")

    @cached_property
    def num_requests(self) -> int:
        """How many there will be, at most: of prompts that are text, too long ones may be left out later.

        Takes a pass over the file, and so finds its wrong lines before anything is sent.
        """
        return sum(1 for _ in self._chosen())

    def items(self, streams: Streams, source: PromptSource) -> Iterator[WorkloadItem]:
        """The requests in order of arrival, each made when it is asked for.

        Raises:
            ValueError: a wrong line of the file, or nothing left of it.
        """
        blocks = _blocks(source, int(streams.prompts.integers(2**63)), self.hash_block_tokens)
        count = 0
        for row, arrival_s, num_prompt, num_output in self._chosen():
            prompt = self._prompt(row, num_prompt, streams, source, blocks)
            if prompt is None:
                continue
            count += 1
            yield WorkloadItem(
                prompt_token_ids=prompt,
                max_tokens=num_output,
                arrival_s=None if self.concurrency is not None else arrival_s,
                client_id=row.client_id,
                priority=row.priority,
            )
        if not count:
            kept = f"workload.start_s={self.start_s}, duration_s={self.duration_s}, too_long={self.too_long}"
            raise ValueError(f"workload.path={self.path!r}: no request is left with {kept}, failed={self.failed}")

    def _chosen(self) -> Iterator[tuple[TraceRow, float, int | None, int]]:
        """Rows that are sent: row, arrival in the replay, length of the prompt where it is known, and of the output."""
        first_s: float | None = None
        count = 0
        for row in read_trace(self._file, self.format):
            first_s = row.arrival_s if first_s is None else first_s
            since_s = row.arrival_s - first_s - self.start_s
            if since_s < 0:
                continue
            if self.duration_s is not None and since_s >= self.duration_s:
                return
            lengths = self._lengths(row)
            if lengths is not None:
                yield row, since_s / self.time_scale, *lengths
                count += 1
                if count == self.max_requests:
                    return

    def _lengths(self, row: TraceRow) -> tuple[int | None, int] | None:
        """Tokens of the prompt and of the output as they are sent, or None where the request is left out."""
        num_prompt, num_output = row.num_prompt_tokens, row.num_output_tokens
        if num_prompt == 0 or num_output == 0:
            if self.failed == "drop":
                return None
            # A prompt of no tokens cannot be sent, whatever was in it.
            num_prompt = num_prompt if num_prompt is None else max(1, num_prompt)
            num_output = max(1, num_output)
        if not self._fits(row, num_prompt, num_output):
            return None
        if num_prompt is not None:
            num_prompt = min(num_prompt, self.max_prompt_tokens or num_prompt)
        return num_prompt, min(num_output, self.max_output_tokens or num_output)

    def _fits(self, row: TraceRow, num_prompt: int | None, num_output: int) -> bool:
        """Whether a request is sent, if need be in part."""
        for what, count in (("prompt", num_prompt), ("output", num_output)):
            limit = getattr(self, f"max_{what}_tokens")
            if count is None or limit is None or count <= limit or self.too_long == "clip":
                continue
            if self.too_long == "error":
                allowed = f"at most workload.max_{what}_tokens={limit}, or choose workload.too_long=skip or clip"
                raise wrong(self.path, row.line, f"{what} tokens", count, allowed)
            return False
        return True

    def _prompt(
        self,
        row: TraceRow,
        length: int | None,
        streams: Streams,
        source: PromptSource,
        blocks: Callable[[tuple[int, ...]], tuple[int, ...]],
    ) -> tuple[int, ...] | None:
        """Tokens of a prompt: those of the trace, or made up. None where its text is too long.

        Args:
            row: of the trace.
            length: tokens to send; None where the text tells.
            streams, source: of made-up tokens.
            blocks: tokens of a block by its name.
        """
        if row.prompt is not None:
            return self._encoded(row, row.prompt, source)
        assert length is not None
        if row.prompt_token_ids:
            return row.prompt_token_ids[:length]
        names = self._names(row, length)
        tokens = [token for name in names for token in blocks(name)][:length]
        if len(tokens) < length:
            tokens += source.tokens(length - len(tokens), streams.prompts, start=not tokens)
        return tuple(tokens)

    def _names(self, row: TraceRow, length: int) -> Sequence[tuple[int, ...]]:
        """Names of the blocks that a prompt of this length begins with."""
        num_blocks = -(-length // self.hash_block_tokens)
        if row.hash_ids is not None:
            most = -(-max(1, row.num_prompt_tokens or 0) // self.hash_block_tokens)
            if len(row.hash_ids) > most:
                allowed = f"at most {most} of workload.hash_block_tokens={self.hash_block_tokens} tokens"
                raise wrong(self.path, row.line, "hash_ids", row.hash_ids, allowed)
            return [(_HASH, place == 0, name) for place, name in enumerate(row.hash_ids[:num_blocks])]
        if self.sessions_share_prefixes and row.session is not None:
            session = int.from_bytes(hashlib.sha256(row.session.encode()).digest()[:8], "big")
            return [(_SESSION, place == 0, session, place) for place in range(num_blocks)]
        return ()

    def _encoded(self, row: TraceRow, text: str, source: PromptSource) -> tuple[int, ...] | None:
        """The trace's own text in tokens, or None where the request is left out."""
        if not isinstance(source, TextPrompts):
            allowed = "one that has a tokenizer, such as heldout: the trace's prompts are text"
            raise ValueError(f"workload.prompts={self.prompts!r}: must be {allowed}")
        tokens = source.encoded(text)
        return tokens[: self.max_prompt_tokens] if self._fits(row, len(tokens), row.num_output_tokens) else None

    @property
    def _file(self) -> str:
        path = located(self.path)
        assert path is not None
        return path


def _blocks(source: PromptSource, root: int, block_tokens: int) -> Callable[[tuple[int, ...]], tuple[int, ...]]:
    """Tokens of a block by its name: (kind, whether it begins a prompt, id...). The same name, the same tokens,
    whatever was asked for before."""

    @functools.lru_cache(maxsize=_KEPT_BLOCKS)
    def tokens(name: tuple[int, ...]) -> tuple[int, ...]:
        kind, begins, *rest = name
        generator = np.random.default_rng([root, kind, *rest])
        return source.tokens(block_tokens, generator, start=bool(begins))

    return tokens


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
