"""The workload seam: requests, and whether they come one after the other or by the clock.

A workload is made from one generator a stream, so that two points of a sweep get the same requests in the same repeat
whatever else differs between them. Its items are made as they are asked for: a million of them need no memory.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from typing import Protocol

import numpy as np

from experiments.workloads.arrivals.poisson import Poisson
from experiments.workloads.draws import BLOCK, endless
from experiments.workloads.prompts import PromptSource
from minivllm.config import require

_WARMUP_DRAWS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkloadItem:
    """One request to send.

    Args:
        prompt_token_ids: at least one token.
        max_tokens: output length, unless the request ends by itself.
        arrival_s: when it is due, in seconds from the start; None sends it as soon as a client is free.
        client_id: who sends it.
        sampling_seed: of its draws.
        priority: lower is more urgent, for the policies that look at it.
        follows: place in the workload of the turn of a conversation that this one answers: it is sent `think_s` after
            that one ended, behind all of its tokens, and `prompt_token_ids` are what is new. None is a first turn.
        think_s: see `follows`; such an item has no arrival of its own.
    """

    prompt_token_ids: tuple[int, ...]
    max_tokens: int
    arrival_s: float | None = None
    client_id: int = 0
    sampling_seed: int = 0
    priority: int = 0
    follows: int | None = None
    think_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Streams:
    """Independent generators, one a question, so that more draws of one do not shift another."""

    arrivals: np.random.Generator
    lengths: np.random.Generator
    prompts: np.random.Generator
    order: np.random.Generator
    sampling: np.random.Generator
    warmup: np.random.Generator
    # A new stream comes last: the place of a name is its seed.
    clients: np.random.Generator

    @classmethod
    def make(cls, *, seed: int, repeat: int) -> Streams:
        """Streams of one repeat; other repeats and other seeds share nothing with them."""
        names = [f.name for f in dataclasses.fields(cls)]
        roots = (np.random.SeedSequence(seed, spawn_key=(repeat, i)) for i in range(len(names)))
        return cls(**dict(zip(names, map(np.random.default_rng, roots), strict=True)))


class Workload(Protocol):
    """What the driver needs of a workload."""

    @property
    def prompts(self) -> str:
        """Where prompts come from: `heldout`, `random`, `lengths_only`, or a .jsonl file."""
        ...

    @property
    def num_requests(self) -> int:
        """How many items there will be, at most."""
        ...

    @property
    def concurrency(self) -> int | None:
        """Clients of a closed loop; None where requests come by the clock."""
        ...

    def items(self, streams: Streams, source: PromptSource) -> Iterable[WorkloadItem]:
        """All requests, in the order of their arrival, best made one by one. Their sampling seeds are filled in
        later (`offered.py`)."""
        ...


@dataclass(frozen=True, kw_only=True)
class WorkloadBase:
    """Fields that the workloads share: arrivals and prompts.

    Args:
        prompts: `heldout`, `random`, `lengths_only`, or a .jsonl file with lines {"path", "text"}.
        concurrency: clients of a closed loop, each with one request at a time.
        request_rate_rps: mean rate of Poisson arrivals, instead of a closed loop.
    """

    prompts: str = "heldout"
    concurrency: int | None = None
    request_rate_rps: float | None = None

    def __post_init__(self) -> None:
        named = isinstance(self.prompts, str) and bool(self.prompts)
        require(named, "workload.prompts", self.prompts, "heldout, random, lengths_only, or a file")
        rate = self.request_rate_rps
        require(
            (self.concurrency is None) != (rate is None),
            "workload.concurrency",
            self.concurrency,
            f"given or null, whichever workload.request_rate_rps={rate} is not",
        )
        if self.concurrency is not None:
            self.require_counts("concurrency")
        valid = isinstance(rate, (int, float)) and not isinstance(rate, bool) and rate > 0
        require(rate is None or valid, "workload.request_rate_rps", rate, "above 0")

    def require_counts(self, *names: str, least: int = 1) -> None:
        for name in names:
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            require(whole and value >= least, f"workload.{name}", value, f"a whole number, {least} or more")

    def require_range(self, what: str, least: int = 1) -> None:
        """`min_<what>` and `max_<what>` are counts in order."""
        low, high = f"min_{what}", f"max_{what}"
        self.require_counts(low, high, least=least)
        value = getattr(self, high)
        require(value >= getattr(self, low), f"workload.{high}", value, f"at least workload.{low}={getattr(self, low)}")

    def draw_lengths(self, what: str, count: int, streams: Streams) -> Iterator[int]:
        """`count` lengths, uniform over [min, max], both included."""
        low, high = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
        own = copy.deepcopy(streams.lengths)
        # Where the stream stands once they are drawn: what is drawn next does not wait for them.
        for done in range(0, count, BLOCK):
            streams.lengths.integers(low, high, size=min(BLOCK, count - done), endpoint=True)
        return islice(endless(lambda size: own.integers(low, high, size=size, endpoint=True)), count)

    def draw_arrivals(self, count: int, streams: Streams) -> Iterator[float | None]:
        """Due times of a Poisson process, or None for each request of a closed loop."""
        if self.request_rate_rps is None:
            return repeat(None, count)
        return islice(Poisson(rate_rps=self.request_rate_rps).times(streams.arrivals), count)


def warmup_items(items: Sequence[WorkloadItem], count: int, vocab_size: int, streams: Streams) -> list[WorkloadItem]:
    """Requests in the shape of the first measured ones, with random prompts of their own and short outputs.

    A prompt that is also measured is drawn again. Where that does not help, as of one token out of very few, the
    request is left out.
    """
    measured = {item.prompt_token_ids for item in items}
    warm = []
    for item in items[:count]:
        for _ in range(_WARMUP_DRAWS):
            prompt = tuple(streams.warmup.integers(0, vocab_size, size=len(item.prompt_token_ids)).tolist())
            if prompt not in measured:
                warm.append(WorkloadItem(prompt_token_ids=prompt, max_tokens=min(item.max_tokens, 8)))
                break
    return warm


class WorkloadDigest:
    """Hash of all that is sent: equal for two points of a paired comparison."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, item: WorkloadItem) -> None:
        """The next item."""
        head: tuple[object, ...] = (
            *(len(item.prompt_token_ids), item.max_tokens, item.arrival_s, item.client_id, item.sampling_seed),
            # Only where there is something to say, so that a hash does not change with what workloads have learnt.
            *((item.priority, item.follows, item.think_s) if item.priority or item.follows is not None else ()),
        )
        self._digest.update(repr(head).encode())
        # An array of the standard library reads a tuple three times as fast as numpy.
        self._digest.update(np.asarray(array("q", item.prompt_token_ids)).astype("<i8", copy=False).tobytes())

    def hexdigest(self) -> str:
        """Of the items so far."""
        return self._digest.hexdigest()


def workload_sha256(items: Iterable[WorkloadItem]) -> str:
    """The hash of all items."""
    digest = WorkloadDigest()
    for item in items:
        digest.add(item)
    return digest.hexdigest()
