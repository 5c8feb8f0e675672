"""Drafting a tree level by level, with a drafter that computes a hidden state for each draft."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from minivllm.attention.base import PackedBatch, TreeQueries
from minivllm.speculation.base import DraftRequest
from minivllm.speculation.model import DraftHost, Drafts
from minivllm.speculation.tree import DraftTree
from minivllm.transfer import upload


def grow_trees(
    tree: DraftTree,
    requests: Sequence[DraftRequest],
    host: DraftHost,
    hidden: Tensor,
    compute_logits: Callable[[Tensor], Tensor],
    run: Callable[[PackedBatch, Tensor], Tensor],
) -> Drafts:
    """Draft the tree for each request, or the first nodes of it where there is room for fewer.

    A level's nodes are computed together with those between them and the root, once more: so they see each other in the
    same pass, and the drafter's K/V of a tree need not be kept. A node that nothing follows is never computed.

    Args:
        tree: its shape.
        requests: R of them.
        host: the runner.
        hidden: [R, C] of the newest tokens.
        compute_logits: [M, C] -> [M, V].
        run: hidden states [N, C] of a batch, given those of the tokens before.
    """
    num_requests, device = len(requests), hidden.device
    counts = np.array([min(request.num_draft_tokens, tree.num_nodes) for request in requests], dtype=np.int64)
    most = int(counts.max())
    depths = np.array(tree.depths[:most])
    token_ids = torch.zeros((num_requests, most), dtype=torch.int64, device=device)
    # [R, 1 + nodes, C]: of the root, then of every node that has children.
    states = hidden.new_zeros(num_requests, 1 + most, hidden.shape[1])
    states[:, 0] = hidden
    for depth in range(int(depths.max())):
        parents = [node for node in ([-1] if depth == 0 else np.flatnonzero(depths == depth).tolist())]
        parents = [node for node in parents if any(child < most for child in tree.children(node))]
        if not parents:
            continue
        if depth > 0:
            inner = [n for n in range(most) if depths[n] <= depth and any(c < most for c in tree.children(n))]
            batch, whose, before = _level(tree, inner, counts, requests, token_ids, host)
            flat = states.flatten(0, 1)
            flat.index_copy_(0, whose, run(batch, flat.index_select(0, before)))
        at = upload(np.array(parents, dtype=np.int64) + 1, device)
        logits = compute_logits(states.index_select(1, at).flatten(0, 1)).view(num_requests, len(parents), -1)
        children = [[child for child in tree.children(parent) if child < most] for parent in parents]
        likeliest = logits.topk(max(map(len, children)), dim=-1).indices
        for place, nodes in enumerate(children):
            token_ids[:, nodes] = likeliest[:, place, : len(nodes)]
    return Drafts(counts=counts, token_ids=token_ids, tree=tree)


def _level(
    tree: DraftTree,
    inner: Sequence[int],
    counts: np.ndarray,
    requests: Sequence[DraftRequest],
    token_ids: Tensor,
    host: DraftHost,
) -> tuple[PackedBatch, Tensor, Tensor]:
    """Some nodes of each request, closed towards the root, as a batch.

    Returns:
        The batch of N queries; [N] int64 each: a query's place in the flattened states, and that of the node before.
    """
    device, width = token_ids.device, token_ids.shape[1]
    # A subtree of its own, whose nodes are numbered by their place in `inner`.
    place_of = {node: place for place, node in enumerate(inner)}
    parents = tuple(place_of.get(tree.parents[node], -1) for node in inner)
    # Without the root, which was computed before.
    seen = DraftTree(parents).seen_bits(len(inner))[1:] >> np.uint64(1)
    # Of a request with fewer nodes, those that it has: the first ones.
    numbers = np.array([sum(node < count for node in inner) for count in counts.tolist()], dtype=np.int64)
    chosen = np.concatenate([np.array(inner[:number], dtype=np.int64) for number in numbers])
    owner = np.repeat(np.arange(len(requests)), numbers)
    rows = np.array([request.row for request in requests], dtype=np.int64)
    newest = np.array([request.num_tokens - 1 for request in requests], dtype=np.int64)
    order = np.concatenate([np.arange(number) for number in numbers])
    slots = host.rows.slots(rows[owner], newest[owner] + 1 + order)
    going = np.flatnonzero(numbers)
    context_lens = (newest + 1 + numbers)[going]
    at = upload(owner * width + chosen, device)
    batch = PackedBatch(
        token_ids=token_ids.flatten().index_select(0, at),
        positions=upload(newest[owner] + np.array(tree.depths)[chosen], device),
        slot_mapping=upload(slots, device),
        cu_seqlens_q=np.concatenate([[0], np.cumsum(numbers[going])]).astype(np.int32),
        context_lens=context_lens,
        block_table=host.rows.block_table[rows[going], : -(-int(context_lens.max()) // host.rows.block_size)],
        sample_indices=at[:0],
        trees=TreeQueries(is_tree=np.ones(len(going), dtype=bool), seen=np.concatenate([seen[:n] for n in numbers])),
    )
    states_width = width + 1
    parents_of = np.array(tree.parents)[chosen]
    whose = upload(owner * states_width + chosen + 1, device)
    before = upload(owner * states_width + parents_of + 1, device)
    return batch, whose, before
