"""The runner that computes where the host lays its inputs out: a plan becomes packed tensors, these become tokens.

Token ids are the host's (numpy); a step is over when it is launched. It serves CPUs, and any device through PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from minivllm.attention.base import AttentionBackend, PackedBatch
from minivllm.clock import Clock, WallClock
from minivllm.config import EngineConfig
from minivllm.plan import Chunk, SampledTokens, StepPlan, StepResult
from minivllm.runner.base import Done, MemoryReport
from minivllm.runner.drafting import StepDrafts, draft_batch, propose, sampling_rows, tell
from minivllm.runner.forward import attend_of, resume_forward
from minivllm.runner.parts import Parts
from minivllm.runner.rows import Rows
from minivllm.sampling.drafts import DraftBatch
from minivllm.sampling.sampler import RowMax, SamplingBatch, is_plain, sample
from minivllm.sampling.verify import sample_chains
from minivllm.speculation.base import Drafter, DraftRequest


class ModelRunner:
    """Weights, K/V tensors and rows on one device.

    Args:
        config: the engine's.
        parts: made for it.
        clock: tells how long drafting takes.
    """

    def __init__(self, config: EngineConfig, parts: Parts, clock: Clock | None = None) -> None:
        self.parts = parts
        self.model = parts.model
        self.kernels = parts.kernels
        self.num_blocks = parts.num_blocks
        self.num_swap_blocks = parts.num_swap_blocks
        self.max_model_len = parts.max_model_len
        self.vocab_size = parts.model.spec.vocab_size
        self.eos_token_ids = parts.model.spec.eos_token_ids
        self._attention = parts.attention
        self._row_max = parts.ops.row_max
        self._path = config.model.path
        self._drafter = parts.drafter
        self._sample_drafts = config.speculation.sample_drafts
        self._clock = clock or WallClock()

        max_rows = config.scheduler.max_num_seqs
        self._rows = Rows(max_rows, self.max_model_len, config.cache.block_size)
        self._token_ids = np.zeros((max_rows, self.max_model_len + 1), dtype=np.int64)
        self._plain = [True] * max_rows

    def launch(self, plan: StepPlan) -> Done:
        return Done(result=self._run(plan))

    def memory(self) -> MemoryReport:
        return self.parts.memory()

    @torch.inference_mode()
    def _run(self, plan: StepPlan) -> StepResult:
        self._apply(plan)
        chunks = plan.chunks
        if not chunks:
            return StepResult(samples=())
        rows = self._rows.of(chunks)
        start_s = self._clock.now_s()
        drafts = None if self._drafter is None else self._draft(self._drafter, chunks, rows)
        drafted_s = self._clock.now_s()
        packed = self._rows.pack(
            chunks, rows, None if drafts is None else drafts.counts, None if drafts is None else drafts.tree
        )
        batch = PackedBatch(
            token_ids=self._to_device(self._token_ids[packed.token_rows, packed.places]),
            positions=self._to_device(packed.positions),
            slot_mapping=self._to_device(packed.slot_mapping),
            cu_seqlens_q=packed.cu_seqlens_q,
            context_lens=packed.context_lens,
            block_table=packed.block_table,
            sample_indices=self._to_device(packed.sample_indices),
            trees=packed.trees,
        )
        if drafts is None or drafts.resume is None:
            hidden_NC = self.forward(batch)
        else:
            hidden_NC = resume_forward(self.model, self._attention, batch, drafts.resume, drafts.counts)
        if self.parts.features is not None:
            self.parts.features.index_copy_(0, batch.slot_mapping, hidden_NC)
        if len(batch.sample_indices) == 0:
            return StepResult(samples=(), decoded=())
        if len(batch.sample_indices) < len(batch.token_ids):
            hidden_NC = hidden_NC.index_select(0, batch.sample_indices)
        decoded, samples = self._sample(
            self.model.compute_logits(hidden_NC).float(), chunks, rows, drafts, num_decodes=len(plan.decodes)
        )
        if self._drafter is not None:
            ends = [chunk.start + chunk.num_tokens for chunk in chunks if chunk.samples]
            for end, sample in zip(ends, samples, strict=True):
                self._drafter.extend(sample.request_id, end + len(sample.token_ids), sample.token_ids)
        if not any(chunk.num_draft_tokens for chunk in plan.others):
            return StepResult(samples=samples, decoded=decoded)
        return StepResult(
            samples=samples,
            decoded=decoded,
            draft_s=drafted_s - start_s,
            verify_s=self._clock.now_s() - drafted_s,
        )

    def forward(self, batch: PackedBatch) -> Tensor:
        """[N, C], see `ReadingRunner`."""
        return self.model.forward(batch.token_ids, batch.positions, attend_of(self._attention, batch))

    def _apply(self, plan: StepPlan) -> None:
        self._rows.release(plan)
        for new in plan.new_rows:
            row = self._rows.add(new)
            self._token_ids[row, : len(new.token_ids)] = new.token_ids
            self._plain[row] = is_plain(new.sampling_params)
        self._rows.update_tables(plan)
        self.parts.moves.apply(plan)
        if self._drafter is not None:
            tell(self._drafter, plan, self._rows)

    # What a drafter needs of its runner, see `DraftHost`

    @property
    def rows(self) -> Rows:
        return self._rows

    @property
    def features(self) -> Tensor | None:
        return self.parts.features

    def token_ids(self, rows: np.ndarray, places: np.ndarray) -> Tensor:
        return self._to_device(self._token_ids[rows, places])

    def draft_batch(self, requests: Sequence[DraftRequest], num_drafts: int) -> DraftBatch:
        return draft_batch(requests, num_drafts, self._rows, self.parts.device, sample=self._sample_drafts)

    @property
    def row_max(self) -> RowMax:
        return self._row_max

    @property
    def attention(self) -> AttentionBackend:
        return self._attention

    def _draft(self, drafter: Drafter, chunks: Sequence[Chunk], rows: np.ndarray) -> StepDrafts | None:
        drafts = propose(drafter, self, chunks, rows)
        if drafts is not None:
            for request, place in zip(drafts.requests, drafts.places, strict=True):
                token_ids = drafts.of_chunk(place)
                end = request.num_tokens + len(token_ids)
                self._token_ids[request.row, request.num_tokens : end] = token_ids
        return drafts

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.parts.device)

    def _sample(
        self,
        logits_MV: Tensor,
        chunks: Sequence[Chunk],
        rows: np.ndarray,
        drafts: StepDrafts | None,
        *,
        num_decodes: int,
    ) -> tuple[tuple[int, ...] | None, tuple[SampledTokens, ...]]:
        """What each sampling chunk gets, see `StepResult`; one with drafts has as many more rows of logits. The first
        `num_decodes` chunks are plain decodes."""
        sampling = [i for i, chunk in enumerate(chunks) if chunk.samples]
        if all(self._plain[row] for row in rows[sampling].tolist()):
            wanted = SamplingBatch.greedy(len(logits_MV))
        else:
            made = [
                row
                for i in sampling
                for row in sampling_rows(
                    chunks[i], int(rows[i]), self._rows, drafts, i, self._token_ids[rows[i]].__getitem__
                )
            ]
            wanted = SamplingBatch.make(made, logits_MV.device)
        if drafts is None or drafts.proposal is None or drafts.proposal.weights is None:
            output = sample(logits_MV, wanted, self._row_max)
        else:
            output = sample_chains(logits_MV, wanted, drafts.chains(sampling), self._row_max)
        own, finite = output.token_ids.tolist(), output.finite.tolist()
        logprobs = {} if output.logprobs is None else output.logprobs.of_rows()
        decoded, first = None, 0
        if self._drafter is None and not logprobs and all(finite[:num_decodes]):
            decoded, first = tuple(own[:num_decodes]), num_decodes
            places = np.array([chunk.start + 1 for chunk in chunks[:num_decodes]], dtype=np.int64)
            self._token_ids[rows[:num_decodes], places] = decoded
        samples = []
        for i in sampling[first:]:
            chunk, row = chunks[i], int(rows[i])
            proposed = () if drafts is None else drafts.of_chunk(i)
            end = first + 1 + len(proposed)
            nodes = [] if drafts is None else drafts.accepted(i, own[first:end])
            reached = [first, *(first + 1 + node for node in nodes)]
            first = end
            if not all(finite[at] for at in reached):
                self.parts.scrub(self._rows.block_table[row])
                samples.append(failed(chunk, self._path, self.parts.dtype))
                continue
            token_ids = [own[at] for at in reached]
            position = chunk.start + chunk.num_tokens
            self._token_ids[row, position : position + len(token_ids)] = token_ids
            if drafts is not None and nodes != list(range(len(nodes))):
                self._move(row, position, nodes)
            samples.append(
                SampledTokens(
                    request_id=chunk.request_id,
                    token_ids=tuple(token_ids),
                    logprobs=tuple(logprobs[at] for at in reached) if reached[0] in logprobs else (),
                    num_draft_tokens=len(proposed),
                    draft_depth=0 if drafts is None else drafts.depth_of_chunk(i),
                )
            )
        return decoded, tuple(samples)

    def _move(self, row: int, first: int, nodes: list[int]) -> None:
        """Bring the K/V of accepted nodes of a tree together, into the slots from place `first` on."""
        sources, targets = (
            self._to_device(self._rows.slots(np.full(len(nodes), row), first + np.array(places, dtype=np.int64)))
            for places in (nodes, range(len(nodes)))
        )
        self.parts.move_slots(sources, targets)


def failed(chunk: Chunk, path: str | None, dtype: torch.dtype) -> SampledTokens:
    """What a request gets whose logits are no numbers."""
    message = (
        f"request {chunk.request_id}: logits for position {chunk.start + chunk.num_tokens} are NaN or infinite; the "
        f"weights of {path} are broken or {dtype} overflows: try execution.dtype=float32"
    )
    return SampledTokens(request_id=chunk.request_id, token_ids=(), error=message)
