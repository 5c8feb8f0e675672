from __future__ import annotations

import itertools
import math
import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from minivllm.speculation.tree import MAX_NODES, DraftTree, accept, best_tree


@st.composite
def _trees(draw: st.DrawFn, max_nodes: int = 12) -> DraftTree:
    num_nodes = draw(st.integers(1, max_nodes))
    return DraftTree(tuple(draw(st.integers(-1, node - 1)) for node in range(num_nodes)))


def _path(tree: DraftTree, node: int) -> tuple[int, ...]:
    """Ranks on the way to a node; of the root none."""
    return () if node == -1 else (*_path(tree, tree.parents[node]), tree.rank(node))


@settings(max_examples=60, deadline=None)
@given(_trees(max_nodes=MAX_NODES))
def test_a_query_sees_its_ancestors_and_itself(tree) -> None:
    bits = tree.seen_bits(tree.num_nodes)
    assert bits.dtype == np.uint64 and bits.shape == (tree.num_nodes + 1,) and int(bits[0]) == 1
    for node in range(tree.num_nodes):
        ancestors, at = set(), node
        while at != -1:
            ancestors.add(at + 1)
            at = tree.parents[at]
        assert {j for j in range(64) if int(bits[node + 1]) >> j & 1} == ancestors | {0}
        assert tree.depths[node] == len(ancestors)
    assert tree.max_depth == max(tree.depths)


@settings(max_examples=40, deadline=None)
@given(_trees(), st.data())
def test_the_first_nodes_of_a_tree_are_a_tree(tree, data) -> None:
    num_nodes = data.draw(st.integers(1, tree.num_nodes))
    first = DraftTree(tree.parents[:num_nodes])
    assert np.array_equal(tree.seen_bits(num_nodes), first.seen_bits(num_nodes))
    assert first.depths == tree.depths[:num_nodes]
    assert [first.rank(node) for node in range(num_nodes)] == [tree.rank(node) for node in range(num_nodes)]
    assert tree.seen_bits(0).tolist() == [1]


@settings(max_examples=40, deadline=None)
@given(_trees())
def test_children_are_those_that_name_their_parent_and_ranks_count_them(tree) -> None:
    for node in range(-1, tree.num_nodes):
        children = tree.children(node)
        assert list(children) == [child for child, parent in enumerate(tree.parents) if parent == node]
        assert [tree.rank(child) for child in children] == list(range(len(children)))


def test_equal_parents_are_equal_trees_whose_masks_nobody_can_write_to() -> None:
    tree = DraftTree((-1, 0, -1))
    assert tree == DraftTree((-1, 0, -1)) and hash(tree) == hash(DraftTree((-1, 0, -1)))
    assert tree != DraftTree((-1, 0, 0))
    with pytest.raises(ValueError, match="read-only"):
        tree.seen_bits(2)[0] = 0


def test_a_chain_sees_all_before() -> None:
    tree = DraftTree.chain(4)
    assert tree.parents == (-1, 0, 1, 2) and tree.is_chain and tree.max_depth == 4
    assert tree.seen_bits(4).tolist() == [0b1, 0b11, 0b111, 0b1111, 0b11111]
    assert not DraftTree((-1, -1)).is_chain
    assert int(DraftTree.chain(63).seen_bits(63)[-1]) == 2**64 - 1


@settings(max_examples=60, deadline=None)
@given(_trees(), st.randoms(use_true_random=False))
def test_paths_in_any_order_give_the_same_tree_in_an_order_whose_beginnings_are_trees(tree, chance) -> None:
    paths = [_path(tree, node) for node in range(tree.num_nodes)]
    # An order that needs no change is kept.
    assert DraftTree.from_paths(paths) == tree
    chance.shuffle(paths)
    made = DraftTree.from_paths(paths)
    assert {_path(made, node) for node in range(made.num_nodes)} == set(paths)


def test_nodes_stand_in_the_order_of_the_paths_but_for_parents_and_likelier_siblings() -> None:
    tree = DraftTree.from_paths([[1, 0], [0, 0], [0], [2], [1], [0, 1]])
    assert [_path(tree, node) for node in range(6)] == [(0,), (1,), (1, 0), (0, 0), (2,), (0, 1)]


def test_widths_give_each_node_of_a_depth_as_many_children() -> None:
    tree = DraftTree.from_widths([3, 2, 1])
    assert tree.num_nodes == 3 + 6 + 6
    for node in range(-1, tree.num_nodes):
        depth = 0 if node == -1 else tree.depths[node]
        assert len(tree.children(node)) == [3, 2, 1, 0][depth]
    assert DraftTree.from_widths([1] * 5) == DraftTree.chain(5)
    # Depth 2 by likeliest drafts comes before the third draft of depth 1.
    assert [_path(tree, node) for node in range(4)] == [(0,), (1,), (0, 0), (2,)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DraftTree(()), "speculation.tree: 0 nodes: must be 1 to 63"),
        (lambda: DraftTree.chain(64), "speculation.tree: 64 nodes: must be 1 to 63"),
        (lambda: DraftTree.from_widths([2] * 6), "speculation.tree: 126 nodes: must be 1 to 63"),
        (lambda: DraftTree.from_widths([2, 0]), r"speculation.tree=\[2, 0\]: widths must be whole numbers from 1 on"),
        (lambda: DraftTree((1, -1)), r"speculation.tree=\[1, -1\]: node 0 follows 1: .*a node before it"),
        (lambda: DraftTree((-1, -2)), r"speculation.tree=\[-1, -2\]: node 1 follows -2: .*"),
        (lambda: DraftTree.from_paths([[0], [0]]), r"speculation.tree: path \[0\] is there twice: name it once"),
        (lambda: DraftTree.from_paths([[]]), r"speculation.tree: path \[\]: must be ranks, .* from 0 on"),
        (lambda: DraftTree.from_paths([[0, 0]]), r"speculation.tree: path \[0, 0\] needs \[0\], .*: add it"),
        (lambda: DraftTree.from_paths([[1]]), r"speculation.tree: path \[1\] needs \[0\], .*: add it"),
        (lambda: DraftTree.from_paths([["0"]]), r"speculation.tree: path \['0'\]: must be ranks, .* from 0 on"),
        (lambda: DraftTree.from_paths([[-1]]), r"speculation.tree: path \[-1\]: must be ranks, .* from 0 on"),
        (lambda: best_tree([[0.5]], 64), "speculation.tree: 64 nodes: must be 1 to 63"),
        (lambda: best_tree([[0.5], [0.5]], 3), "speculation.num_draft_tokens=3: .*a tree of 2: choose no more"),
        (lambda: best_tree([[1.5]], 1), "speculation.tree: acceptance 1.5: must be 0 to 1"),
        (lambda: best_tree([[math.nan]], 1), "speculation.tree: acceptance nan: must be 0 to 1"),
    ],
)
def test_what_is_no_tree_is_refused_in_a_line(make, message) -> None:
    with pytest.raises(ValueError, match=rf"^{message}$"):
        make()


def _expected_length(tree: DraftTree, acceptance) -> float:
    """Sum over nodes of the probability that the path to them is accepted."""
    total = 0.0
    for node in range(tree.num_nodes):
        total += math.prod(acceptance[depth][rank] for depth, rank in enumerate(_path(tree, node)))
    return total


def _all_trees(num_nodes: int, num_depths: int, num_ranks: int) -> list[DraftTree]:
    trees = []
    for parents in itertools.product(range(-1, num_nodes - 1), repeat=num_nodes):
        if all(parent < node for node, parent in enumerate(parents)):
            tree = DraftTree(parents)
            if tree.max_depth <= num_depths and max(map(tree.rank, range(num_nodes))) < num_ranks:
                trees.append(tree)
    return trees


_chance = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))
_row = st.lists(_chance, min_size=2, max_size=2).map(lambda row: sorted(row, reverse=True))


@settings(max_examples=60, deadline=None)
@given(st.lists(_row, min_size=3, max_size=3))
def test_no_tree_of_its_size_is_longer_accepted_than_the_best_nor_than_its_beginnings(acceptance) -> None:
    best = best_tree(acceptance, 5)
    for num_nodes in range(1, 6):
        ours = _expected_length(DraftTree(best.parents[:num_nodes]), acceptance)
        brute = max(_expected_length(tree, acceptance) for tree in _all_trees(num_nodes, len(acceptance), 2))
        assert ours == pytest.approx(brute, abs=1e-12)


def test_by_hand_the_second_draft_beats_a_long_shot() -> None:
    # 0.6; then 0.3 of rank 1, and 0.6 * 0.4 = 0.24 after the first; 0.3 * 0.4 = 0.12 and 0.6 * 0.1 = 0.06.
    tree = best_tree([[0.6, 0.3], [0.4, 0.1]], 5)
    assert [_path(tree, node) for node in range(5)] == [(0,), (1,), (0, 0), (1, 0), (0, 1)]
    # Certain drafts are a chain; of equal paths the nearest to the root is first.
    assert best_tree([[1.0, 0.0]] * 4, 4) == DraftTree.chain(4)
    assert best_tree([[0.5, 0.5]] * 2, 3).depths == (1, 1, 2)


def test_a_rank_that_looks_likelier_than_the_one_before_counts_as_that() -> None:
    assert best_tree([[0.5, 0.9], [0.9, 0.1]], 4) == best_tree([[0.5, 0.5], [0.9, 0.1]], 4)


def _walk(tree: DraftTree, node_tokens, own_tokens, num_nodes: int, node: int = -1) -> list[int]:
    """The definition of `accept`, node by node."""
    for child in range(num_nodes):
        if tree.parents[child] == node and node_tokens[child] == own_tokens[node + 1]:
            return [child, *_walk(tree, node_tokens, own_tokens, num_nodes, child)]
    return []


@settings(max_examples=200, deadline=None)
@given(_trees(), st.data())
def test_the_accepted_path_follows_what_the_target_says(tree, data) -> None:
    # Few tokens, so that siblings are alike now and then.
    tokens = st.integers(0, 2)
    node_tokens = data.draw(st.lists(tokens, min_size=tree.num_nodes, max_size=tree.num_nodes))
    own_tokens = data.draw(st.lists(tokens, min_size=tree.num_nodes + 1, max_size=tree.num_nodes + 1))
    num_nodes = data.draw(st.integers(0, tree.num_nodes))
    expected = _walk(tree, node_tokens, own_tokens, num_nodes)
    assert accept(tree, node_tokens, own_tokens, num_nodes) == expected
    assert accept(tree, node_tokens[:num_nodes], own_tokens[: num_nodes + 1]) == expected


def test_a_draft_that_is_right_under_a_wrong_parent_is_not_accepted() -> None:
    # The target says 7, then 8. Node 2 (8) follows node 0 (6), which is wrong; nodes 1 and 4 are the path.
    tree = DraftTree((-1, -1, 0, 1, 1))
    assert accept(tree, [6, 7, 8, 9, 8], [7, 8, 8, 0, 0, 5]) == [1, 4]
    assert accept(tree, [6, 7, 8, 9, 8], [7, 8, 8, 0, 0, 5], num_nodes=4) == [1]
    assert accept(tree, [], [7]) == []


def test_a_tree_needs_no_torch() -> None:
    code = "import sys, minivllm.speculation.tree; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
