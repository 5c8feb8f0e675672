"""Requests that share prefixes of different depths, as the branches of a tree do: a system prompt, under it the prompts
of applications, under those examples or documents. What a cache-aware policy lives on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np

from experiments.workloads.base import Streams, WorkloadItem
from experiments.workloads.draws import Weighted, endless, is_number
from experiments.workloads.prompts import PromptSource
from experiments.workloads.traffic import Traffic
from minivllm.config import require

# Nodes whose tokens are kept; others are made again, and come out the same.
_KEPT_NODES = 4096


@dataclass(frozen=True, kw_only=True)
class PrefixTree(Traffic):
    """A path from the root to a leaf, chosen at random, then a suffix of the request's own, whose length is the prompt
    length that `lengths=...` gives.

    Args:
        depth: levels under the root.
        fan_out: children of each node that is no leaf.
        root_tokens: of the root, which all requests share.
        node_tokens: of each other node.
        zipf_exponent: a node's child i is chosen with a probability proportional to (i + 1) ** -zipf_exponent; 0 makes
            all alike.

    A request's `client_id` is its branch at the root. Its other arguments are those of `Traffic`.
    """

    depth: int
    fan_out: int
    root_tokens: int
    node_tokens: int
    zipf_exponent: float = 0.0

    def __post_init__(self) -> None:
        Traffic.__post_init__(self)
        self.require_counts("depth", "fan_out", "node_tokens")
        self.require_counts("root_tokens", least=0)
        valid = is_number(self.zipf_exponent) and self.zipf_exponent >= 0
        require(valid, "workload.zipf_exponent", self.zipf_exponent, "a number, 0 or more")

    def items(self, streams: Streams, source: PromptSource) -> Iterable[WorkloadItem]:
        num_shared = self.root_tokens + self.depth * self.node_tokens
        assert self.max_total_tokens is not None
        room = f"at least {num_shared + 2}: the paths have {num_shared} tokens"
        require(num_shared + 2 <= self.max_total_tokens, "workload.max_total_tokens", self.max_total_tokens, room)
        node_key, choices = int(streams.prompts.integers(2**63)), streams.order
        root = source.tokens(self.root_tokens, streams.prompts) if self.root_tokens else ()

        @lru_cache(maxsize=_KEPT_NODES)
        def node(*path: int) -> tuple[int, ...]:
            # A generator of its own: what a node says does not depend on who came there first.
            own = np.random.default_rng(np.random.SeedSequence(node_key, spawn_key=path))
            return source.tokens(self.node_tokens, own, start=not root and len(path) == 1)

        children = Weighted([place**-self.zipf_exponent for place in range(1, self.fan_out + 1)])
        steps = endless(lambda size: children.draw(size, choices))

        def path_tokens(path: tuple[int, ...]) -> tuple[int, ...]:
            return root + tuple(chain.from_iterable(node(*path[:end]) for end in range(1, self.depth + 1)))

        paths = (tuple(next(steps) for _ in range(self.depth)) for _ in range(self.num_requests))
        return (
            WorkloadItem(
                prompt_token_ids=path_tokens(path) + source.tokens(num_suffix, streams.prompts, start=False),
                max_tokens=num_output,
                arrival_s=arrival_s,
                client_id=path[0],
            )
            for path, arrival_s, (num_suffix, num_output) in zip(
                paths,
                self.draw_arrivals(self.num_requests, streams),
                self.draw_pairs(streams, reserved_tokens=num_shared),
                strict=True,
            )
        )
