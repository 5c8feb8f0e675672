"""One layer that drafts on the target's hidden states: from a token's embedding and the state before it, the state that
the target would make of it, and through the target's head the next token.

While drafting, its own states stand in for the target's; once tokens are accepted it reads them anew, with the
target's. Its K/V lies in the engine's blocks.

Source: EAGLE (arXiv 2401.15077), section 4; EAGLE-3 (arXiv 2503.01840) for the truncated vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from minivllm.attention.base import PackedBatch
from minivllm.models.flow import Flow
from minivllm.models.llama import Decoder
from minivllm.models.spec import ModelSpec
from minivllm.plan import StepPlan
from minivllm.quantization.none import Unquantized
from minivllm.quantization.select import Selection
from minivllm.runner.forward import attend_of
from minivllm.runner.rows import Rows
from minivllm.speculation.base import DraftRequest
from minivllm.speculation.chain import ChainDrafter
from minivllm.speculation.heads import Heads, draft_head, linear_target
from minivllm.speculation.model import DraftHost, Drafts
from minivllm.speculation.paged import DraftCache, pack, pack_drafts
from minivllm.speculation.target import DraftTarget
from minivllm.speculation.tree import read_tree
from minivllm.speculation.tree_growth import grow_trees
from minivllm.transfer import upload


class Eagle(ChainDrafter):
    """Drafts with one layer on hidden states.

    Args:
        target: see `Drafter`.
        path: its folder.
        tree: a tree of drafts, as paths of ranks or as widths (see `DraftTree`); None is a chain.
        draft_vocab_size: draft only so many most frequent tokens; None is all.

    Raises:
        ValueError: weights of another target.
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
        heads = Heads(path, "EagleHead", target)
        # A Llama's layer in all but its input.
        spec = ModelSpec.from_hf({**heads.config, "architectures": ["LlamaForCausalLM"]}, str(heads.folder))
        self._tree = read_tree(tree)
        self._join = heads.linear("fc.weight")
        self._decoder = Decoder(
            spec,
            heads,
            Selection(Unquantized(target=linear_target(target)), (), spec.num_layers, target.dtype),
            target.ops,
            target.max_model_len,
            Flow(),
            target.device,
        )
        heads.check_used()
        self._compute_logits = draft_head(heads, target, draft_vocab_size)
        self._cache = DraftCache(spec, target)
        self.weights_bytes = heads.weights_bytes + self._decoder.weights_bytes
        self.bytes_per_block = self._cache.bytes_per_block
        self._most_tokens = target.config.scheduler.max_num_batched_tokens

    def allocate(self, num_blocks: int) -> None:
        self._cache.allocate(num_blocks)

    def update(self, plan: StepPlan, rows: Rows) -> None:
        self._cache.update(plan)

    def block_tensors(self) -> Sequence[Tensor]:
        return self._cache.block_tensors()

    def end(self, request_id: int) -> None:
        self._cache.end(request_id)

    def propose(self, requests: Sequence[DraftRequest], host: DraftHost) -> Drafts:
        if self._tree is None:
            return super().propose(requests, host)
        return grow_trees(self._tree, requests, host, self.begin(requests, host), self.compute_logits, self.run)

    def begin(self, requests: Sequence[DraftRequest], host: DraftHost) -> Tensor:
        assert host.features is not None
        hidden = torch.empty(0)
        for parts in self._cache.unread(requests, self._most_tokens):
            batch = pack(parts, host)
            rows = np.concatenate([np.full(end - start, request.row) for request, start, end in parts])
            places = np.concatenate([np.arange(start, end) for _, start, end in parts])
            slots = upload(host.rows.slots(rows, np.maximum(places - 1, 0)), self.target.device)
            features = host.features.index_select(0, slots)
            if not places.all():
                # Nothing comes before the first token.
                features.index_fill_(0, upload(np.flatnonzero(places == 0), features.device), 0)
            hidden = self.run(batch, features).index_select(0, batch.sample_indices)
        self._cache.read(requests, host.rows)
        return hidden

    def advance(
        self, token_ids: Tensor, hidden: Tensor, requests: Sequence[DraftRequest], offset: int, host: DraftHost
    ) -> Tensor:
        return self.run(pack_drafts(token_ids, requests, offset, host), hidden)

    def run(self, batch: PackedBatch, features: Tensor) -> Tensor:
        """The layer on a batch.

        Args:
            batch: N tokens.
            features: [N, C], of the token before each.

        Returns:
            [N, C], what the target's final hidden states should be.
        """
        joined = self._join(torch.cat([self.target.model.embed(batch.token_ids), features], dim=-1))
        return self._decoder.run_layers(joined, batch.positions, attend_of(self._cache.attention, batch))

    def compute_logits(self, hidden: Tensor) -> Tensor:
        return self._compute_logits(hidden)
