"""Several tokens at once: heads on the target's last hidden state, one for each position ahead.

The newest token is known when its successors are drafted, and its hidden state is not: heads look at the state before
it, and at its embedding.

Source: Medusa (arXiv 2401.10774), sections 2.1.1 and 2.1.2; the embedding is ours (Hydra, arXiv 2402.05109, has more of
it).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minivllm.speculation.base import DraftRequest
from minivllm.speculation.heads import Heads, draft_head
from minivllm.speculation.model import DraftHost, Drafts, ModelDrafter
from minivllm.speculation.target import DraftTarget
from minivllm.speculation.tree import DraftTree, read_tree
from minivllm.transfer import upload


class Medusa(ModelDrafter):
    """Drafts with heads.

    Args:
        target: see `Drafter`.
        path: their folder.
        tree: a tree of drafts, as paths of ranks or as widths (see `DraftTree`); None is a chain.
        draft_vocab_size: draft only so many most frequent tokens; None is all.

    Raises:
        ValueError: heads of another target, or fewer than the tree is deep.
    """

    wants_features = True

    def __init__(
        self,
        *,
        target: DraftTarget,
        path: str,
        tree: Sequence[Sequence[int]] | Sequence[int] | None = None,
        draft_vocab_size: int | None = None,
    ) -> None:
        super().__init__(target=target)
        heads = Heads(path, "MedusaHeads", target)
        num_heads, num_blocks = heads.count("num_heads"), heads.count("num_blocks")
        self._tree: DraftTree | None = read_tree(tree)
        deepest = target.config.speculation.num_draft_tokens if self._tree is None else self._tree.max_depth
        if deepest > num_heads:
            key = "speculation.num_draft_tokens" if self._tree is None else "speculation.tree"
            raise ValueError(f"{key}: looks {deepest} tokens ahead, and {path!r} has {num_heads} heads: choose no more")
        self._embed_projection = heads.linear("embed_proj.weight")
        self._blocks = [
            [heads.linear(f"heads.{i}.{j}.linear.weight", f"heads.{i}.{j}.linear.bias") for j in range(num_blocks)]
            for i in range(deepest)
        ]
        # In the place of a head's own vocabulary: the target's head comes after it.
        self._projections = [heads.linear(f"heads.{i}.{num_blocks}.weight") for i in range(deepest)]
        heads.check_used([f"heads.{i}." for i in range(deepest, num_heads)])
        self._compute_logits = draft_head(heads, target, draft_vocab_size)
        self.weights_bytes = heads.weights_bytes

    def propose(self, requests: Sequence[DraftRequest], host: DraftHost) -> Drafts:
        if self._tree is None:
            return self._propose_chains(requests, host)
        tree = self._tree
        counts = np.array([min(request.num_draft_tokens, tree.num_nodes) for request in requests], dtype=np.int64)
        logits_RKV = self._logits(requests, tree.max_depth, host)
        depths = np.array(tree.depths) - 1
        ranks = np.array([tree.rank(node) for node in range(tree.num_nodes)])
        likeliest_RKW = logits_RKV.topk(int(ranks.max()) + 1, dim=-1).indices
        at = upload(depths * likeliest_RKW.shape[-1] + ranks, likeliest_RKW.device)
        return Drafts(counts=counts, token_ids=likeliest_RKW.flatten(1).index_select(1, at), tree=tree)

    def _propose_chains(self, requests: Sequence[DraftRequest], host: DraftHost) -> Drafts:
        counts = np.array([request.num_draft_tokens for request in requests], dtype=np.int64)
        most = int(counts.max())
        logits_RKV = self._logits(requests, most, host)
        batch = host.draft_batch(requests, most)
        outputs = [batch.draw(logits_RKV[:, step].contiguous(), step, host.row_max) for step in range(most)]
        weights = [output.weights for output in outputs if output.weights is not None]
        return Drafts(
            counts=counts,
            token_ids=torch.stack([output.token_ids for output in outputs], dim=1),
            weights=torch.stack(weights, dim=1) if weights else None,
            drawn=batch.drawn if weights else None,
        )

    def _logits(self, requests: Sequence[DraftRequest], num_heads: int, host: DraftHost) -> Tensor:
        """[R, K, V] float32 of the first K heads."""
        rows = np.array([request.row for request in requests], dtype=np.int64)
        newest = np.array([request.num_tokens - 1 for request in requests], dtype=np.int64)
        assert host.features is not None
        slots = upload(host.rows.slots(rows, newest - 1), self.target.device)
        embedding = self.target.model.embed(host.token_ids(rows, newest))
        x = host.features.index_select(0, slots) + self._embed_projection(embedding)
        hidden = []
        for blocks, project in zip(self._blocks[:num_heads], self._projections, strict=False):
            ahead = x
            for block in blocks:
                ahead = ahead + F.silu(block(ahead))
            hidden.append(project(ahead))
        logits = self._compute_logits(torch.stack(hidden, dim=1).flatten(0, 1))
        return logits.view(len(requests), num_heads, -1)
