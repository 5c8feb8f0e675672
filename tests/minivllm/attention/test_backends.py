"""Every backend against the definitions in `minivllm_kernels.paged_attention.reference` and, where there are trees of
drafts, `minivllm_kernels.prefill_attention.reference`."""

from __future__ import annotations

import dataclasses
import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from minivllm.attention.base import AttentionShape, PackedBatch, TreeQueries
from minivllm.attention.numba_backend import NumbaAttention
from minivllm.attention.torch_backend import TorchAttention
from minivllm.attention.triton_backend import TritonAttention
from minivllm.speculation.tree import DraftTree
from minivllm_kernels.paged_attention.reference import paged_attention_reference
from minivllm_kernels.prefill_attention.reference import prefill_attention_reference
from minivllm_kernels.prefill_attention.tree import pack_tree_mask

_FORK = DraftTree((-1, -1, 0, 1))
_BUSH = DraftTree((-1, 0, 0, -1, 2, 4, 3, 5, 0))


def _make_case(query_lens, computed, *, num_kv_heads, group, head_dim, block_size, window, seed=0, in_order=False):
    """A batch over a cache that holds random K/V everywhere. A `DraftTree` in place of a number of queries has one for
    its root and each of its nodes."""
    trees = [lens if isinstance(lens, DraftTree) else None for lens in query_lens]
    query_lens = [lens.num_nodes + 1 if isinstance(lens, DraftTree) else lens for lens in query_lens]
    generator = torch.Generator().manual_seed(seed)
    contexts = [q + c for q, c in zip(query_lens, computed, strict=True)]
    blocks_each = [-(-c // block_size) for c in contexts]
    num_blocks = sum(blocks_each) + 1
    order = torch.randperm(num_blocks - 1, generator=generator).numpy() + 1
    if in_order:
        order.sort()
    table = np.full((len(query_lens), max(blocks_each)), -1, dtype=np.int32)
    at = 0
    for row, count in enumerate(blocks_each):
        table[row, :count] = order[at : at + count]
        at += count
    num_heads = num_kv_heads * group
    cache = torch.randn(2, num_blocks, block_size, 2, num_kv_heads, head_dim, generator=generator)
    qkv = torch.randn(sum(query_lens), (num_heads + 2 * num_kv_heads) * head_dim, generator=generator)
    places = np.concatenate([np.arange(c, c + q) for q, c in zip(query_lens, computed, strict=True)])
    rows = np.repeat(np.arange(len(query_lens)), query_lens)
    slots = table[rows, places // block_size].astype(np.int64) * block_size + places % block_size
    positions, seen = places.copy(), np.full(len(places), 0xDEAD, dtype=np.uint64)
    for row, tree in enumerate(trees):
        if tree is not None:
            positions[rows == row] = computed[row] + np.array([0, *tree.depths])
            seen[rows == row] = tree.seen_bits(tree.num_nodes)
    batch = PackedBatch(
        token_ids=torch.zeros(len(positions), dtype=torch.int64),
        positions=torch.from_numpy(positions),
        slot_mapping=torch.from_numpy(slots),
        cu_seqlens_q=np.concatenate([[0], np.cumsum(query_lens)]).astype(np.int32),
        context_lens=np.array(contexts, dtype=np.int64),
        block_table=table,
        sample_indices=torch.zeros(0, dtype=torch.int64),
        trees=TreeQueries(is_tree=np.array([tree is not None for tree in trees]), seen=seen) if any(trees) else None,
    )
    shape = AttentionShape(
        num_layers=2,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        # Two layers that see differently, as some Qwen2 models have.
        sliding_windows=(window, None),
    )
    return batch, shape, cache, qkv


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    lens=st.lists(
        st.tuples(st.sampled_from([1, 1, 1, 2, 7, 33]), st.sampled_from([0, 0, 1, 15, 16, 70])), min_size=1, max_size=7
    ),
    num_kv_heads=st.sampled_from([1, 2, 3]),
    group=st.sampled_from([1, 2, 4, 7]),
    head_dim=st.sampled_from([8, 24, 32, 72]),
    block_size=st.sampled_from([1, 2, 16, 64]),
    window=st.sampled_from([None, 1, 5, 40]),
    in_order=st.booleans(),
)
@pytest.mark.parametrize("kind", [TorchAttention, NumbaAttention])
def test_attention_is_that_of_the_definition(
    kind, lens, num_kv_heads, group, head_dim, block_size, window, in_order
) -> None:
    query_lens, computed = [q for q, _ in lens], [c for _, c in lens]
    case = _make_case(
        query_lens,
        computed,
        num_kv_heads=num_kv_heads,
        group=group,
        head_dim=head_dim,
        block_size=block_size,
        window=window,
        in_order=in_order,
    )
    _check_layers(kind, *case)


def _check_layers(kind, batch, shape, cache, qkv) -> None:
    """Both layers' outputs and writes are those of the definition."""
    head_dim, num_kv_heads = shape.head_dim, shape.num_kv_heads
    expected_cache = cache.clone()
    backend = kind(shape, cache)
    metadata = backend.prepare(batch)
    heads = qkv.view(len(qkv), -1, head_dim)
    q, k, v = heads.split((shape.num_heads, num_kv_heads, num_kv_heads), dim=1)
    for layer in range(2):
        got = backend.attend(qkv, layer, metadata)
        written = expected_cache[layer].view(-1, 2, num_kv_heads, head_dim)
        written[batch.slot_mapping] = torch.stack([k, v], dim=1)
        torch.testing.assert_close(cache[layer], expected_cache[layer], atol=0, rtol=0, equal_nan=True)
        tensors = (
            q.double(),
            expected_cache[layer].double(),
            torch.from_numpy(batch.block_table),
            torch.from_numpy(batch.cu_seqlens_q),
            torch.from_numpy(batch.context_lens),
        )
        options = {"scale": head_dim**-0.5, "sliding_window": shape.sliding_windows[layer]}
        if batch.trees is None:
            wanted = paged_attention_reference(*tensors, **options)
        else:
            mask = pack_tree_mask(_seen_by(batch))
            wanted = prefill_attention_reference(*tensors, tree_mask=mask, positions=batch.positions, **options)
        torch.testing.assert_close(got.double(), wanted.reshape(got.shape), atol=2e-5, rtol=0)


def _seen_by(batch: PackedBatch) -> torch.Tensor:
    """[N, most queries] bool: those of its request that a query sees, whether in a tree or in a chain."""
    bounds = batch.cu_seqlens_q.tolist()
    mask = torch.zeros(bounds[-1], int(np.diff(bounds).max()), dtype=torch.bool)
    for row, (first, end) in enumerate(itertools.pairwise(bounds)):
        for i, j in itertools.product(range(end - first), repeat=2):
            mask[first + i, j] = int(batch.trees.seen[first + i]) >> j & 1 if batch.trees.is_tree[row] else j <= i
    return mask


@st.composite
def _trees(draw: st.DrawFn) -> DraftTree:
    # Now and then as large as may be: the sign's bit is the last query's.
    num_nodes = draw(st.sampled_from([1, 2, 5, 9, 63]))
    return DraftTree(tuple(draw(st.integers(-1, node - 1)) for node in range(num_nodes)))


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    trees=st.lists(st.tuples(_trees(), st.sampled_from([0, 1, 15, 16, 70])), min_size=1, max_size=3),
    others=st.lists(st.tuples(st.sampled_from([1, 1, 2, 33]), st.sampled_from([0, 1, 16, 70])), max_size=3),
    num_kv_heads=st.sampled_from([1, 2]),
    group=st.sampled_from([1, 2, 7]),
    head_dim=st.sampled_from([8, 24]),
    block_size=st.sampled_from([1, 2, 16]),
    window=st.sampled_from([None, 1, 3, 40]),
    chance=st.randoms(use_true_random=False),
)
@pytest.mark.parametrize("kind", [TorchAttention, NumbaAttention])
def test_a_draft_sees_its_ancestors_and_what_came_before_beside_requests_that_do_not_draft(
    kind, trees, others, num_kv_heads, group, head_dim, block_size, window, chance
) -> None:
    lens = [*trees, *others]
    chance.shuffle(lens)
    case = _make_case(
        [q for q, _ in lens], [c for _, c in lens], num_kv_heads=num_kv_heads, group=group, head_dim=head_dim,
        block_size=block_size, window=window,
    )  # fmt: skip
    _check_layers(kind, *case)


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize(
    ("lens", "heads", "block_size", "window"),
    [
        # Trees after decodes, alone, between prompts; of one node, with and without a past; of all that a word holds.
        ([(1, 37), (1, 3), (_FORK, 20), (_BUSH, 0)], (2, 3), 4, None),
        ([(_BUSH, 18), (DraftTree((-1,)), 0)], (2, 3), 1, 3),
        ([(7, 0), (_FORK, 30), (5, 20), (_BUSH, 17), (1, 9)], (2, 3), 2, 4),
        ([(1, 5), (DraftTree.from_widths([2, 2, 2, 2]), 9), (DraftTree.chain(63), 3)], (1, 1), 16, 5),
    ],
    ids=["decodes-trees", "trees", "mixed", "largest"],
)
def test_triton_attention_over_trees_is_that_of_the_definition(
    lens, heads, block_size, window, batch_invariant
) -> None:
    batch, shape, cache, qkv = _make_case(
        [q for q, _ in lens], [c for _, c in lens], num_kv_heads=heads[0], group=heads[1], head_dim=24,
        block_size=block_size, window=window,
    )  # fmt: skip
    _poison(batch, cache)
    metadata = TritonAttention(shape, cache).prepare(batch)
    if metadata.prefills is not None:
        # Each request is launched once.
        assert ((metadata.prefills.context_lens > 0) != (metadata.trees.context_lens > 0)).all()
    _check_layers(TritonAttention, batch, dataclasses.replace(shape, batch_invariant=batch_invariant), cache, qkv)


def _slots(batch: PackedBatch, cache: torch.Tensor, row: int, end: int) -> np.ndarray:
    """Of a request's first tokens."""
    block_size, places = cache.shape[2], np.arange(end)
    return batch.block_table[row, places // block_size].astype(np.int64) * block_size + places % block_size


def _poison(batch: PackedBatch, cache: torch.Tensor) -> None:
    """NaN wherever no request has a token."""
    reached = [_slots(batch, cache, row, int(end)) for row, end in enumerate(batch.context_lens)]
    unused = np.setdiff1d(np.arange(cache.shape[1] * cache.shape[2]), np.concatenate(reached))
    cache.view(2, -1, *cache.shape[3:])[:, unused] = float("nan")


def _attend_along_paths(kind, trees, num_before, block_size, window, *, batch_invariant=False):
    """Pairs of outputs, [num_nodes + 1, H * D] of both layers each: of trees, and of each node as the last token of its
    path alone, all in one batch."""
    paths = [[_path(tree, node) for node in range(-1, tree.num_nodes)] for tree in trees]
    lens = [*trees, *(len(path) + 1 for path in itertools.chain(*paths))]
    batch, shape, cache, qkv = _make_case(
        lens, [num_before] * len(lens), num_kv_heads=2, group=3, head_dim=24, block_size=block_size, window=window
    )
    _poison(batch, cache)
    slots, bounds = cache.view(2, -1, 2, 2, 24), batch.cu_seqlens_q.tolist()
    row, last = len(trees), []
    for owner, of_tree in enumerate(paths):
        for path in of_tree:
            slots[:, _slots(batch, cache, row, num_before)] = slots[:, _slots(batch, cache, owner, num_before)]
            qkv[bounds[row] : bounds[row + 1]] = qkv[[bounds[owner] + 1 + node for node in (-1, *path)]]
            row += 1
            last.append(bounds[row] - 1)
    backend = kind(dataclasses.replace(shape, batch_invariant=batch_invariant), cache)
    out = torch.cat([backend.attend(qkv, layer, backend.prepare(batch)) for layer in range(2)], dim=1)
    return out[: bounds[len(trees)]], out[last]


def _path(tree: DraftTree, node: int) -> list[int]:
    return [] if node == -1 else [*_path(tree, tree.parents[node]), node]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    trees=st.lists(_trees(), min_size=1, max_size=2),
    num_before=st.sampled_from([0, 1, 14, 15, 40]),
    block_size=st.sampled_from([1, 2, 16]),
    window=st.sampled_from([None, 1, 3, 20]),
)
def test_a_draft_is_attended_to_the_last_bit_as_if_its_path_were_all(trees, num_before, block_size, window) -> None:
    """So accepted drafts leave the very K/V behind that decoding leaves; chains are trees too."""
    ours, alone = _attend_along_paths(NumbaAttention, trees, num_before, block_size, window)
    assert torch.equal(ours, alone) and ours.isfinite().all()


@pytest.mark.parametrize("window", [None, 3], ids=lambda w: f"W{w}")
def test_triton_attends_a_chain_given_as_a_tree_to_the_last_bit_as_a_chain(window) -> None:
    ours, alone = _attend_along_paths(
        TritonAttention, [DraftTree.chain(3)], 14, block_size=2, window=window, batch_invariant=True
    )
    assert torch.equal(ours, alone) and ours.isfinite().all()


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize(
    ("lens", "block_size", "window"),
    [
        # Decodes alone, decodes before prompts, prompts alone, decodes after a prompt.
        ([(1, 40), (1, 0)], 16, None),
        ([(1, 37), (1, 3), (7, 0), (5, 20)], 4, 6),
        ([(9, 0)], 16, None),
        ([(3, 17), (1, 20)], 1, 5),
    ],
    ids=["decodes", "mixed", "prompt", "decode-last"],
)
def test_triton_attention_is_that_of_the_definition(lens, block_size, window, batch_invariant) -> None:
    query_lens, computed = [q for q, _ in lens], [c for _, c in lens]
    batch, shape, cache, qkv = _make_case(
        query_lens, computed, num_kv_heads=2, group=3, head_dim=24, block_size=block_size, window=window
    )
    _check_layers(TritonAttention, batch, dataclasses.replace(shape, batch_invariant=batch_invariant), cache, qkv)


@pytest.mark.parametrize("lens", [[(1, 40)] * 5, [(1, 3), (1, 2000)], [(64, 0)], [(9, 0), (1, 5)]], ids=str)
def test_no_layer_calls_attention_more_often_than_there_are_shapes(lens, monkeypatch) -> None:
    """Never one call a request: equal requests share one."""
    calls = []
    real = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or real(*a, **k)
    )
    batch, shape, cache, qkv = _make_case(
        [q for q, _ in lens], [c for _, c in lens], num_kv_heads=1, group=2, head_dim=8, block_size=16, window=None
    )
    backend = TorchAttention(shape, cache)
    backend.attend(qkv, 1, backend.prepare(batch))
    assert len(calls) <= len(set(lens))


def _attend_with_numba(lens, block_size: int = 16, window: int | None = 40, *, poison: bool = False) -> torch.Tensor:
    batch, shape, cache, qkv = _make_case(
        [q for q, _ in lens], [c for _, c in lens], num_kv_heads=2, group=3, head_dim=24, block_size=block_size,
        window=window,
    )  # fmt: skip
    # K, V and queries by place in a request, whatever the batch and the blocks.
    token = torch.Generator().manual_seed(1)
    keys = torch.randn(200, 2, 2, 24, generator=token)
    queries = torch.randn(200, (6 + 4) * 24, generator=token)
    if poison:
        cache.fill_(float("nan"))
    for row, context in enumerate(batch.context_lens.tolist()):
        cache.view(2, -1, 2, 2, 24)[:, _slots(batch, cache, row, context)] = keys[:context]
    qkv.copy_(queries[batch.positions])
    qkv[:, 6 * 24 :] = keys[batch.positions].flatten(1)
    backend = NumbaAttention(shape, cache)
    return torch.cat([backend.attend(qkv, layer, backend.prepare(batch)) for layer in range(2)], dim=1)


@pytest.mark.parametrize("others", [[], [(1, 3), (7, 100)], [(33, 0)] * 3], ids=str)
@pytest.mark.parametrize("block_size", [1, 8, 128])
def test_a_token_is_attended_to_the_last_bit_alike_in_any_batch_chunk_and_block_size(others, block_size) -> None:
    whole = _attend_with_numba([(150, 0)])
    last = _attend_with_numba([(1, 149), *others], block_size)
    chunk = _attend_with_numba([*others, (30, 100)], block_size)
    assert torch.equal(last[0], whole[149])
    assert torch.equal(chunk[-30:], whole[100:130])


@pytest.mark.parametrize("num_threads", [2, 3, 7])
def test_the_number_of_threads_changes_no_bit(num_threads) -> None:
    lens = [(1, 149), (2, 5), (1, 0), (40, 3)]
    alone = _attend_with_numba(lens)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        assert torch.equal(_attend_with_numba(lens), alone)
    finally:
        torch.set_num_threads(before)


def test_slots_that_no_request_reaches_are_never_read() -> None:
    lens = [(1, 40), (5, 0), (3, 30)]
    assert torch.equal(_attend_with_numba(lens, poison=True), _attend_with_numba(lens))


def test_a_nan_in_q_or_k_spoils_the_output_instead_of_vanishing() -> None:
    for place in (0, 6 * 24):
        batch, shape, cache, qkv = _make_case(
            [1], [40], num_kv_heads=2, group=3, head_dim=24, block_size=16, window=None
        )
        qkv[0, place] = float("nan")
        backend = NumbaAttention(shape, cache)
        assert backend.attend(qkv, 1, backend.prepare(batch))[0, :24].isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_refused_by_name(dtype) -> None:
    _, shape, cache, _ = _make_case([1], [4], num_kv_heads=1, group=1, head_dim=8, block_size=4, window=None)
    with pytest.raises(ValueError, match=r"^attention=numba: .*float16 on cpu: choose attention=torch$"):
        NumbaAttention(shape, cache.to(dtype))
