"""The runner that computes where the host lays its inputs out: a plan becomes packed tensors, these become tokens.

Token ids are the host's (numpy); a step is over when it is launched. It serves CPUs, and any device through PyTorch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from minivllm.attention.base import PackedBatch
from minivllm.config import EngineConfig
from minivllm.layers.base import Rotary
from minivllm.plan import Chunk, SampledTokens, StepPlan, StepResult
from minivllm.runner.base import Done, MemoryReport
from minivllm.runner.parts import Parts
from minivllm.runner.rows import Rows
from minivllm.sampling.sampler import SamplingBatch, SamplingRow, is_plain, sample


class ModelRunner:
    """Weights, K/V tensors and rows on one device.

    Args:
        config: the engine's.
        parts: made for it.
    """

    def __init__(self, config: EngineConfig, parts: Parts) -> None:
        self.parts = parts
        self.model = parts.model
        self.kernels = parts.kernels
        self.num_blocks = parts.num_blocks
        self.max_model_len = parts.max_model_len
        self.vocab_size = parts.model.spec.vocab_size
        self.eos_token_ids = parts.model.spec.eos_token_ids
        self._attention = parts.attention
        self._row_max = parts.ops.row_max
        self._path = config.model.path

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
        if not plan.chunks:
            return StepResult(samples=())
        rows = self._rows.of(plan.chunks)
        packed = self._rows.pack(plan.chunks, rows)
        batch = PackedBatch(
            token_ids=self._to_device(self._token_ids[packed.token_rows, packed.positions]),
            positions=self._to_device(packed.positions),
            slot_mapping=self._to_device(packed.slot_mapping),
            cu_seqlens_q=packed.cu_seqlens_q,
            context_lens=packed.context_lens,
            block_table=packed.block_table,
            sample_indices=self._to_device(packed.sample_indices),
        )
        hidden_NC = self.forward(batch)
        sampling = [(chunk, row) for chunk, row in zip(plan.chunks, rows.tolist(), strict=True) if chunk.samples]
        if not sampling:
            return StepResult(samples=())
        if len(batch.sample_indices) < len(batch.token_ids):
            hidden_NC = hidden_NC.index_select(0, batch.sample_indices)
        return self._sample(self.model.compute_logits(hidden_NC).float(), sampling)

    def forward(self, batch: PackedBatch) -> Tensor:
        """[N, C], see `ReadingRunner`."""
        metadata = self._attention.prepare(batch)

        def attend(qkv: Tensor, layer: int, rotary: Rotary, at: Any) -> Tensor:
            rotary.rotate_(qkv, at)
            return self._attention.attend(qkv, layer, metadata)

        return self.model.forward(batch.token_ids, batch.positions, attend)

    def _apply(self, plan: StepPlan) -> None:
        self._rows.release(plan)
        for new in plan.new_rows:
            row = self._rows.add(new)
            self._token_ids[row, : len(new.token_ids)] = new.token_ids
            self._plain[row] = is_plain(new.sampling_params)
        self._rows.update_tables(plan)
        if plan.copies:
            sources = torch.tensor([copy.source for copy in plan.copies], device=self.parts.device)
            targets = torch.tensor([copy.target for copy in plan.copies], device=self.parts.device)
            self.parts.copy_blocks(sources, targets)

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.parts.device)

    def _sample(self, logits_MV: Tensor, sampling: list[tuple[Chunk, int]]) -> StepResult:
        if all(self._plain[row] for _, row in sampling):
            wanted = SamplingBatch.greedy(len(sampling))
        else:
            wanted = SamplingBatch.make([self._sampling_row(chunk, row) for chunk, row in sampling], logits_MV.device)
        output = sample(logits_MV, wanted, self._row_max)
        token_ids, finite = output.token_ids.tolist(), output.finite.tolist()
        logprobs = {} if output.logprobs is None else output.logprobs.of_rows()
        samples = []
        for i, (chunk, row) in enumerate(sampling):
            position = chunk.start + chunk.num_tokens
            if not finite[i]:
                self._scrub(row)
                samples.append(failed(chunk, self._path, self.parts.dtype))
                continue
            self._token_ids[row, position] = token_ids[i]
            samples.append(
                SampledTokens(
                    request_id=chunk.request_id,
                    token_ids=(token_ids[i],),
                    logprobs=(logprobs[i],) if i in logprobs else (),
                )
            )
        return StepResult(samples=tuple(samples))

    def _sampling_row(self, chunk: Chunk, row: int) -> SamplingRow:
        num_prompt, num_tokens = int(self._rows.num_prompt_tokens[row]), chunk.start + chunk.num_tokens
        return SamplingRow(
            params=self._rows.params[row],
            seed=self._rows.seeds[row],
            position=num_tokens,
            prompt_token_ids=self._token_ids[row, :num_prompt],
            output_token_ids=self._token_ids[row, num_prompt:num_tokens],
        )

    def _scrub(self, row: int) -> None:
        # The row's blocks go back to the pool, where a stray NaN would spoil whoever reads past its own keys.
        table = self._rows.block_table[row]
        blocks = torch.from_numpy(table[table >= 0].astype(np.int64)).to(self.parts.device)
        held = self.parts.kv_cache.index_select(1, blocks)
        self.parts.kv_cache.index_copy_(1, blocks, held.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0))


def failed(chunk: Chunk, path: str | None, dtype: torch.dtype) -> SampledTokens:
    """What a request gets whose logits are no numbers."""
    message = (
        f"request {chunk.request_id}: logits for position {chunk.start + chunk.num_tokens} are NaN or infinite; the "
        f"weights of {path} are broken or {dtype} overflows: try execution.dtype=float32"
    )
    return SampledTokens(request_id=chunk.request_id, token_ids=(), error=message)
