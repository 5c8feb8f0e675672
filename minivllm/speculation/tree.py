"""The shape of a draft tree: which draft follows which, and which of them the target agrees with.

Nodes are numbered, parents before children and likelier siblings before less likely ones, so that any first nodes of a
tree are a tree again: a step that has room for fewer drafts takes the first. The root is no node: it is the newest
token, known already, and stands for the parent of the first drafts as -1.

Source: Medusa (arXiv 2401.10774), sections 2.1.2 and 2.3.3.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

# The root is a query too, and a query's sight is a word of 64 bits.
MAX_NODES = 63
_ROOT = -1


@dataclass(frozen=True, slots=True)
class DraftTree:
    """The shape of a draft tree.

    Args:
        parents: of each node the node that it follows, -1 for the root.

    Raises:
        ValueError: no node, more than 63, or a parent that does not come before its child.
    """

    parents: tuple[int, ...]
    # [num_nodes], tokens after the root: 1 for a child of the root.
    depths: tuple[int, ...] = field(init=False, repr=False, compare=False)
    # [num_nodes + 1]: of each node, and at -1 of the root.
    _children: tuple[tuple[int, ...], ...] = field(init=False, repr=False, compare=False)
    _ranks: tuple[int, ...] = field(init=False, repr=False, compare=False)
    # [num_nodes + 1] uint64, not writable
    _seen: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _require_size(len(self.parents))
        for node, parent in enumerate(self.parents):
            if not _ROOT <= parent < node:
                raise ValueError(
                    f"speculation.tree={list(self.parents)}: node {node} follows {parent}: must be -1 (the root) or a "
                    "node before it"
                )
        depths: list[int] = []
        ranks: list[int] = []
        children: list[list[int]] = [[] for _ in range(len(self.parents) + 1)]
        seen = np.ones(len(self.parents) + 1, dtype=np.uint64)
        for node, parent in enumerate(self.parents):
            depths.append(1 if parent == _ROOT else depths[parent] + 1)
            ranks.append(len(children[parent]))
            children[parent].append(node)
            seen[node + 1] = seen[parent + 1] | np.uint64(1 << (node + 1))
        seen.flags.writeable = False
        object.__setattr__(self, "depths", tuple(depths))
        object.__setattr__(self, "_ranks", tuple(ranks))
        object.__setattr__(self, "_children", tuple(map(tuple, children)))
        object.__setattr__(self, "_seen", seen)

    @classmethod
    def chain(cls, num_nodes: int) -> DraftTree:
        """Each node follows the one before."""
        return cls(tuple(range(_ROOT, num_nodes - 1)))

    @classmethod
    def from_paths(cls, paths: Sequence[Sequence[int]]) -> DraftTree:
        """From Medusa's way to write a tree: each node is the ranks on the way to it, so [0, 2] follows the likeliest
        first draft and is the third likeliest there.

        Args:
            paths: in any order. Nodes are numbered in this order, but for parents and likelier siblings, which come
                first.

        Raises:
            ValueError: a path that is empty, is there twice, or lacks its parent or a likelier sibling.
        """
        wanted = [tuple(path) for path in paths]
        _require_size(len(wanted))
        for path in wanted:
            if not path or not all(isinstance(rank, int) and rank >= 0 for rank in path):
                raise ValueError(f"speculation.tree: path {list(path)}: must be ranks, whole numbers from 0 on")
            if wanted.count(path) > 1:
                raise ValueError(f"speculation.tree: path {list(path)} is there twice: name it once")
        nodes: dict[tuple[int, ...], int] = {(): _ROOT}

        def add(path: tuple[int, ...], needed_by: tuple[int, ...]) -> None:
            if path in nodes:
                return
            if path not in wanted:
                raise ValueError(
                    f"speculation.tree: path {list(needed_by)} needs {list(path)}, which is missing: add it"
                )
            add(path[:-1], path)
            if path[-1] > 0:
                add((*path[:-1], path[-1] - 1), path)
            nodes[path] = len(nodes) - 1

        for path in wanted:
            add(path, path)
        return cls(tuple(nodes[path[:-1]] for path in nodes if path))

    @classmethod
    def from_widths(cls, widths: Sequence[int]) -> DraftTree:
        """Every node at depth d, the root at 0, has `widths[d]` children. A rank counts as much as a depth: nodes are
        numbered by the sum of both, then by depth.

        Raises:
            ValueError: a width below 1, or too many nodes.
        """
        if not widths or not all(isinstance(width, int) and width >= 1 for width in widths):
            raise ValueError(f"speculation.tree={list(widths)}: widths must be whole numbers from 1 on")
        paths: list[tuple[int, ...]] = []
        level: list[tuple[int, ...]] = [()]
        for width in widths:
            _require_size(len(paths) + len(level) * width)
            level = [(*path, rank) for path in level for rank in range(width)]
            paths += level
        return cls.from_paths(sorted(paths, key=lambda path: (sum(path) + len(path), len(path), path)))

    @property
    def num_nodes(self) -> int:
        return len(self.parents)

    @property
    def max_depth(self) -> int:
        return max(self.depths)

    @property
    def is_chain(self) -> bool:
        return self.max_depth == self.num_nodes

    def children(self, node: int) -> tuple[int, ...]:
        """The nodes that follow a node, likeliest first; -1 is the root."""
        assert _ROOT <= node < self.num_nodes, f"node {node} of {self.num_nodes}"
        return self._children[node]

    def rank(self, node: int) -> int:
        """The how-manieth child of its parent a node is: 0 for the likeliest."""
        assert 0 <= node < self.num_nodes, f"node {node} of {self.num_nodes}"
        return self._ranks[node]

    def path(self, node: int) -> tuple[int, ...]:
        """The nodes on the way from the root to a node, itself the last."""
        path = [node]
        while self.parents[path[-1]] != _ROOT:
            path.append(self.parents[path[-1]])
        return tuple(reversed(path))

    def seen_bits(self, num_nodes: int) -> np.ndarray:
        """What the queries of the first `num_nodes` nodes see of each other.

        Returns:
            [num_nodes + 1] uint64, read only: query 0 is the root and query i + 1 is node i; bit j stands for query j.
            A query sees its ancestors and itself.
        """
        assert 0 <= num_nodes <= self.num_nodes, f"{num_nodes} nodes of {self.num_nodes}"
        return self._seen[: num_nodes + 1]


def read_tree(given: Sequence[Sequence[int]] | Sequence[int] | None) -> DraftTree | None:
    """A tree as a config has it: paths of ranks, or widths; None is none."""
    if given is None:
        return None
    if not isinstance(given, (list, tuple)) or not given:
        raise ValueError(f"speculation.tree={given!r}: must be null, a list of widths, or a list of paths of ranks")
    widths = [item for item in given if not isinstance(item, (list, tuple))]
    if len(widths) == len(given):
        return DraftTree.from_widths(widths)
    paths = [item for item in given if isinstance(item, (list, tuple))]
    if widths:
        raise ValueError(f"speculation.tree={list(given)!r}: must be widths alone, or paths alone")
    return DraftTree.from_paths(paths)


def best_tree(acceptance: Sequence[Sequence[float]], num_nodes: int) -> DraftTree:
    """The tree with the longest expected accepted path, if a draft's chance depends on its depth and rank alone.

    A node is worth the probability of the path to it, the product of its drafts' chances: that is what it adds to the
    expectation. Nodes come out in descending order of that, so that the first n are the best tree of n nodes.

    Args:
        acceptance: `acceptance[d][r]` is the probability that the r-th likeliest draft at depth d + 1 is right, given
            that the one it follows is; 0 for those that are not there. A rank that an estimate finds likelier than the
            rank before it counts as that.
        num_nodes: of the tree.

    Raises:
        ValueError: more nodes than there are depths and ranks for, or no probability.

    Source: Medusa (arXiv 2401.10774), section 2.3.3; the assumption is Sequoia's (arXiv 2402.12374), section 3.1.
    """
    _require_size(num_nodes)
    chances = [tuple(_descending(row)) for row in acceptance]
    # (-probability of the path, depth from 0, order of entry, parent, rank, probability of the path to the parent): of
    # equal ones the nearest to the root.
    heap: list[tuple[float, int, int, int, int, float]] = []
    num_entered = 0

    def enter(depth: int, parent: int, rank: int, before: float) -> None:
        nonlocal num_entered
        if depth < len(chances) and rank < len(chances[depth]):
            heapq.heappush(heap, (-before * chances[depth][rank], depth, num_entered, parent, rank, before))
            num_entered += 1

    enter(0, _ROOT, 0, 1.0)
    parents: list[int] = []
    while len(parents) < num_nodes:
        if not heap:
            raise ValueError(
                f"speculation.num_draft_tokens={num_nodes}: the drafter has depths and ranks for a tree of "
                f"{len(parents)}: choose no more"
            )
        negated, depth, _, parent, rank, before = heapq.heappop(heap)
        parents.append(parent)
        enter(depth + 1, len(parents) - 1, 0, -negated)
        enter(depth, parent, rank + 1, before)
    return DraftTree(tuple(parents))


def accept(
    tree: DraftTree, node_tokens: Sequence[int], own_tokens: Sequence[int], num_nodes: int | None = None
) -> list[int]:
    """The accepted path: from the root on, the first child that is what the target says, as long as there is one.

    Args:
        node_tokens: the draft of each node.
        own_tokens: what the target says after the root, then after each node.
        num_nodes: nodes that were drafted, the tree's first; None is as many as there are `node_tokens`.

    Returns:
        Nodes from the root on. The target's own token after the last of them is `own_tokens[path[-1] + 1]`, or
        `own_tokens[0]` where there is none.
    """
    num_nodes = len(node_tokens) if num_nodes is None else num_nodes
    assert num_nodes <= min(tree.num_nodes, len(node_tokens), len(own_tokens) - 1), f"{num_nodes} nodes"
    path: list[int] = []
    last = _ROOT
    # One pass: whatever follows a node comes after it.
    for node in range(num_nodes):
        if tree.parents[node] == last and node_tokens[node] == own_tokens[last + 1]:
            path.append(node)
            last = node
    return path


def _require_size(num_nodes: int) -> None:
    if not 1 <= num_nodes <= MAX_NODES:
        raise ValueError(f"speculation.tree: {num_nodes} nodes: must be 1 to {MAX_NODES}")


def _descending(row: Sequence[float]) -> Iterator[float]:
    least = 1.0
    for chance in row:
        if not 0 <= chance <= 1:
            raise ValueError(f"speculation.tree: acceptance {chance!r}: must be 0 to 1")
        least = min(least, chance)
        yield least
