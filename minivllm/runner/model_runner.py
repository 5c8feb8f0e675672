"""The runner on a real device: a plan becomes packed tensors, the tensors become tokens.

It keeps one row a running request (token ids and block table, numpy), told by the plans what changed, so that building
a step's inputs is a few vectorized look-ups, whatever the batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from minivllm.attention.base import AttentionBackend, AttentionShape, PackedBatch
from minivllm.config import EngineConfig
from minivllm.engine import blocks_in_pool
from minivllm.layers.base import Rotary
from minivllm.models import load_model
from minivllm.models.loader import resolve_dtype
from minivllm.plan import BlockCopy, Chunk, NewRow, SampledTokens, StepPlan, StepResult
from minivllm.quantization.none import Unquantized
from minivllm.runner.base import Done, MemoryReport
from minivllm.runner.kernels import attention_of, make_ops, resolve_kernels
from minivllm.sampling.sampler import SamplingBatch, SamplingRow, is_plain, sample
from minivllm.sampling_params import SamplingParams
from minivllm_kernels.cpu_memory import advise_huge_pages


class ModelRunner:
    """Weights, K/V tensors and rows on one device.

    Args:
        config: the engine's.

    Raises:
        ValueError: a device that is not there, a model that cannot be loaded, no memory for one block.
    """

    def __init__(self, config: EngineConfig) -> None:
        execution = config.execution
        if execution.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("execution.device='cuda': torch sees no GPU on this machine; choose execution.device=cpu")
        if execution.num_threads is not None:
            torch.set_num_threads(execution.num_threads)
        self.device = torch.device(execution.device)
        dtype = resolve_dtype(config.model, device=execution.device, dtype=execution.dtype)
        self.kernels = resolve_kernels(execution, dtype)
        ops = make_ops(self.kernels)
        self._row_max = ops.row_max
        self.model = load_model(
            config.model,
            device=execution.device,
            dtype=execution.dtype,
            scheme=Unquantized(kernels=self.kernels),
            ops=ops,
        )
        spec = self.model.spec
        self.max_model_len = spec.limit_length(config.model.max_model_len)
        self.vocab_size = spec.vocab_size
        self.eos_token_ids = spec.eos_token_ids
        self.block_size = config.cache.block_size
        self._path = config.model.path

        row_elements = 2 * spec.num_kv_heads * spec.head_dim
        self._dtype = dtype
        self._bytes_per_block = spec.num_layers * self.block_size * row_elements * dtype.itemsize
        self.num_blocks = blocks_in_pool(config, self._bytes_per_block, self.max_model_len)
        self.kv_cache = torch.empty(
            (spec.num_layers, self.num_blocks, self.block_size, 2, spec.num_kv_heads, spec.head_dim),
            dtype=dtype,
            device=self.device,
        )
        if self.device.type == "cpu":
            advise_huge_pages(self.kv_cache)
        # Masked keys are multiplied by 0, and 0 times a stray NaN is NaN.
        self.kv_cache.zero_()
        shape = AttentionShape(
            num_layers=spec.num_layers,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            block_size=self.block_size,
            sliding_windows=spec.sliding_windows,
        )
        backend = execution.attention or attention_of(self.kernels)
        self.attention: AttentionBackend = backend.make("attention", shape=shape, kv_cache=self.kv_cache)

        max_rows = config.scheduler.max_num_seqs
        max_blocks = -(-self.max_model_len // self.block_size)
        self._token_ids = np.zeros((max_rows, self.max_model_len + 1), dtype=np.int64)
        self._block_table = np.full((max_rows, max_blocks), -1, dtype=np.int32)
        self._num_prompt_tokens = np.zeros(max_rows, dtype=np.int64)
        self._params: list[SamplingParams | None] = [None] * max_rows
        self._plain = [True] * max_rows
        self._seeds = [0] * max_rows
        self._row_of: dict[int, int] = {}
        self._free_rows = list(range(max_rows - 1, -1, -1))

    def launch(self, plan: StepPlan) -> Done:
        return Done(result=self._run(plan))

    @torch.inference_mode()
    def _run(self, plan: StepPlan) -> StepResult:
        self._apply(plan)
        if not plan.chunks:
            return StepResult(samples=())
        rows = np.array([self._row_of[chunk.request_id] for chunk in plan.chunks])
        batch = self._pack(plan.chunks, rows)
        metadata = self.attention.prepare(batch)

        def attend(qkv: Tensor, layer: int, rotary: Rotary, at: Any) -> Tensor:
            rotary.rotate_(qkv, at)
            return self.attention.attend(qkv, layer, metadata)

        hidden_NC = self.model.forward(batch.token_ids, batch.positions, attend)
        sampling = [(chunk, row) for chunk, row in zip(plan.chunks, rows.tolist(), strict=True) if chunk.samples]
        if not sampling:
            return StepResult(samples=())
        if len(batch.sample_indices) < len(batch.token_ids):
            hidden_NC = hidden_NC.index_select(0, batch.sample_indices)
        return self._sample(self.model.compute_logits(hidden_NC), sampling)

    def memory(self) -> MemoryReport:
        cuda = self.device.type == "cuda"
        return MemoryReport(
            weights_bytes=self.model.weights_bytes,
            kv_cache_bytes=self.num_blocks * self._bytes_per_block,
            peak_allocated_bytes=torch.cuda.max_memory_allocated() if cuda else None,
            peak_reserved_bytes=torch.cuda.max_memory_reserved() if cuda else None,
        )

    def _apply(self, plan: StepPlan) -> None:
        for request_id in plan.released:
            # A request that ended before its first step never had a row.
            row = self._row_of.pop(request_id, None)
            if row is not None:
                self._free_rows.append(row)
        for new in plan.new_rows:
            self._make_row(new)
        for update in plan.table_updates:
            row = self._row_of[update.request_id]
            self._block_table[row, update.first : update.first + len(update.block_ids)] = update.block_ids
        if plan.copies:
            self._copy_blocks(plan.copies)

    def _make_row(self, new: NewRow) -> None:
        row = self._free_rows.pop()
        self._row_of[new.request_id] = row
        self._token_ids[row, : len(new.token_ids)] = new.token_ids
        self._num_prompt_tokens[row] = new.num_prompt_tokens
        self._block_table[row] = -1
        self._params[row] = new.sampling_params
        self._plain[row] = is_plain(new.sampling_params)
        self._seeds[row] = new.sampling_seed

    def _copy_blocks(self, copies: tuple[BlockCopy, ...]) -> None:
        # No block is both source and target in one step: targets are fresh, sources were computed before.
        sources = torch.tensor([copy.source for copy in copies], device=self.device)
        targets = torch.tensor([copy.target for copy in copies], device=self.device)
        self.kv_cache.index_copy_(1, targets, self.kv_cache.index_select(1, sources))

    def _pack(self, chunks: tuple[Chunk, ...], rows: np.ndarray) -> PackedBatch:
        num_rows, size = len(chunks), self.block_size
        starts = np.array([chunk.start for chunk in chunks], dtype=np.int64)
        samples = [i for i, chunk in enumerate(chunks) if chunk.samples]
        if all(chunk.num_tokens == 1 for chunk in chunks):
            # Decodes only, the usual step.
            cu_seqlens_q = np.arange(num_rows + 1, dtype=np.int32)
            token_rows, positions, context_lens = rows, starts, starts + 1
            last_tokens = np.array(samples, dtype=np.int64)
        else:
            counts = np.array([chunk.num_tokens for chunk in chunks], dtype=np.int64)
            cu_seqlens_q = np.zeros(num_rows + 1, dtype=np.int32)
            np.cumsum(counts, out=cu_seqlens_q[1:])
            token_rows = np.repeat(rows, counts)
            positions = np.arange(len(token_rows)) + np.repeat(starts - cu_seqlens_q[:-1], counts)
            context_lens = starts + counts
            last_tokens = cu_seqlens_q[1:][samples].astype(np.int64) - 1
        slots = self._block_table[token_rows, positions // size] * np.int64(size) + positions % size
        num_blocks = -(-int(context_lens.max()) // size)
        return PackedBatch(
            token_ids=self._to_device(self._token_ids[token_rows, positions]),
            positions=self._to_device(positions),
            slot_mapping=self._to_device(slots),
            cu_seqlens_q=cu_seqlens_q,
            context_lens=context_lens,
            block_table=self._block_table[rows, :num_blocks],
            sample_indices=self._to_device(last_tokens),
        )

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

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
            if not finite[i]:
                samples.append(self._failed(chunk, row))
                continue
            position = chunk.start + chunk.num_tokens
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
        num_prompt, num_tokens = int(self._num_prompt_tokens[row]), chunk.start + chunk.num_tokens
        params = self._params[row]
        assert params is not None
        return SamplingRow(
            params=params,
            seed=self._seeds[row],
            position=num_tokens,
            prompt_token_ids=self._token_ids[row, :num_prompt],
            output_token_ids=self._token_ids[row, num_prompt:num_tokens],
        )

    def _failed(self, chunk: Chunk, row: int) -> SampledTokens:
        # Its blocks go back to the pool, where a stray NaN would spoil whoever reads past its own keys.
        blocks = torch.from_numpy(self._block_table[row][self._block_table[row] >= 0].astype(np.int64)).to(self.device)
        held = self.kv_cache.index_select(1, blocks)
        self.kv_cache.index_copy_(1, blocks, held.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0))
        position = chunk.start + chunk.num_tokens
        message = (
            f"request {chunk.request_id}: logits for position {position} are NaN or infinite; the weights of "
            f"{self._path} are broken or {self._dtype} overflows: try execution.dtype=float32"
        )
        return SampledTokens(request_id=chunk.request_id, token_ids=(), error=message)
