"""Traffic fits into its context; a tree of prefixes is one."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loads import check_counts, make_load, make_part

from experiments.workloads.base import WorkloadItem
from experiments.workloads.offered import OfferedLoad
from experiments.workloads.prefix_tree import PrefixTree
from experiments.workloads.prompts import LengthsOnly, RandomTokens
from experiments.workloads.traffic import Traffic

FIXED = {"_target_": "experiments.workloads.lengths.fixed.Fixed", "num_tokens": 5}


def _tree(num_requests: int = 200, seed: int = 0, **changes: object) -> list[WorkloadItem]:
    shape = {"depth": 2, "fan_out": 3, "root_tokens": 4, "node_tokens": 3} | changes
    workload = PrefixTree(num_requests=num_requests, concurrency=4, **shape)
    lengths = make_part("lengths", "fixed", prompt=FIXED, output=FIXED)
    load = OfferedLoad(workload.with_lengths(lengths, 4096), RandomTokens(2**40), seed=seed, repeat=0)
    return list(load)


@pytest.mark.parametrize("too_long", ["redraw", "clip"])
def test_no_request_is_longer_than_its_context(too_long: str) -> None:
    workload = Traffic(num_requests=3000, concurrency=1, too_long=too_long)
    lengths = make_part("lengths", "zipf")
    items = list(OfferedLoad(workload.with_lengths(lengths, 300), LengthsOnly(9), seed=0, repeat=0))
    totals = [len(item.prompt_token_ids) + item.max_tokens for item in items]
    assert len(items) == 3000 and max(totals) == 300
    # A fifth of the pairs are longer than that.
    assert (sum(total == 300 for total in totals) > 500) == (too_long == "clip")


def test_a_longest_total_of_ones_own_is_kept() -> None:
    items = make_load("workload=traffic", "workload.max_total_tokens=90", "lengths=uniform")
    assert max(len(item.prompt_token_ids) + item.max_tokens for item in items) <= 90


def test_lengths_of_the_command_line_win_over_the_workloads_default() -> None:
    items = list(make_load("workload=traffic", "lengths=fixed", "lengths.output.num_tokens=7"))
    assert {(len(item.prompt_token_ids), item.max_tokens) for item in items} == {(256, 7)}
    mixed = "lengths.prompt={_target_:experiments.workloads.lengths.fixed.Fixed,num_tokens:9}"
    other = "lengths.output={_target_:experiments.workloads.lengths.uniform.Uniform,min_tokens:1,max_tokens:2}"
    items = list(make_load("workload=traffic", "lengths=separate", mixed, other))
    assert {(len(item.prompt_token_ids), item.max_tokens) for item in items} == {(9, 1), (9, 2)}


@settings(max_examples=20, deadline=None)
@given(depth=st.integers(1, 4), fan_out=st.integers(1, 4), root_tokens=st.integers(0, 5), node_tokens=st.integers(1, 5))
def test_prompts_are_paths_of_a_tree(depth: int, fan_out: int, root_tokens: int, node_tokens: int) -> None:
    items = _tree(60, depth=depth, fan_out=fan_out, root_tokens=root_tokens, node_tokens=node_tokens)
    assert {len(item.prompt_token_ids) for item in items} == {root_tokens + depth * node_tokens + 5}
    for level in range(depth + 1):
        shared = root_tokens + level * node_tokens
        prefixes = {item.prompt_token_ids[:shared] for item in items}
        assert len(prefixes) <= fan_out**level
        # A node belongs to one parent: nowhere else are its tokens.
        if level:
            parents = {prefix[shared - node_tokens :]: prefix[: shared - node_tokens] for prefix in prefixes}
            assert len(parents) == len(prefixes)
    assert len({item.prompt_token_ids[-5:] for item in items}) == len(items)
    assert {item.client_id for item in items} <= set(range(fan_out))


def test_branches_are_as_popular_as_their_weights() -> None:
    items = _tree(8000, zipf_exponent=1.0)
    weights = [1, 1 / 2, 1 / 3]
    shares = [weight / sum(weights) for weight in weights]
    first = {item.prompt_token_ids[4:7]: item.client_id for item in items}
    assert len(first) == 3
    leaves = Counter(item.prompt_token_ids[4:10] for item in items)
    assert len(leaves) == 9
    # Popularity of a leaf is the product of its choices.
    popular = dict(enumerate(sorted((a * b for a in shares for b in shares), reverse=True)))
    seen = [count for _, count in leaves.most_common()]
    assert seen == pytest.approx([8000 * p for p in popular.values()], rel=0.15)
    check_counts(np.array([item.client_id for item in items]), dict(enumerate(shares)))


def test_a_node_says_the_same_whoever_comes_first_and_another_seed_says_something_else() -> None:
    few = {item.prompt_token_ids[:10] for item in _tree(300)}
    many = {item.prompt_token_ids[:10] for item in _tree(900)}
    assert few == many and len(few) == 9
    assert not few & {item.prompt_token_ids[:10] for item in _tree(300, seed=1)}


def test_a_tree_with_more_nodes_than_are_kept_is_still_one() -> None:
    items = _tree(3000, depth=3, fan_out=40, root_tokens=0)
    by_path: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for item in items:
        by_path.setdefault(item.prompt_token_ids[:3], set()).add(item.prompt_token_ids[3:6])
    assert len(by_path) == 40 and all(len(children) <= 40 for children in by_path.values())
    assert sum(map(len, by_path.values())) > 1000
