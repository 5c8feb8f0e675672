"""The runner for GPUs: tokens, tables and parameters live on the device, and a launch returns while the device works.

Steps that only decode are replayed as CUDA graphs (`decode`, `graphs`); steps with prompts in them are launched kernel
by kernel, decodes first. Either way the sampled tokens stay on the device for the next step, and a copy of them travels
to the host, to be read when the step is waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minivllm.attention.base import PackedBatch
from minivllm.attention.triton_backend import TritonAttention
from minivllm.config import EngineConfig
from minivllm.layers.base import Rotary
from minivllm.plan import Chunk, SampledTokens, StepPlan, StepResult
from minivllm.runner.base import Done, Launched, MemoryReport
from minivllm.runner.decode import DecodeStep, attend_with, batch_buckets
from minivllm.runner.device_rows import DeviceRows, Need
from minivllm.runner.graphs import DecodeGraphs
from minivllm.runner.model_runner import failed
from minivllm.runner.parts import Parts
from minivllm.runner.rows import Rows
from minivllm.transfer import download, upload
from minivllm_kernels.compilations import num_compilations
from minivllm_kernels.sample.kernel import logprobs


class DeviceRunner:
    """Weights, K/V tensors and rows on a GPU (or, under Triton's interpreter, on a CPU).

    Args:
        config: the engine's.
        parts: made for it.

    Raises:
        ValueError: CUDA graphs with an attention backend that they cannot hold.
    """

    def __init__(self, config: EngineConfig, parts: Parts) -> None:
        self.parts = parts
        self.model = parts.model
        self.kernels = parts.kernels
        self.num_blocks = parts.num_blocks
        self.max_model_len = parts.max_model_len
        self.vocab_size = parts.model.spec.vocab_size
        self.eos_token_ids = parts.model.spec.eos_token_ids
        self._path = config.model.path
        self._attention = parts.attention
        self._on_gpu = parts.device.type == "cuda"

        max_rows = config.scheduler.max_num_seqs
        self._rows = Rows(max_rows, self.max_model_len, config.cache.block_size)
        self._device_rows = DeviceRows(self._rows, max_rows, self.max_model_len, parts.device)
        self._needs = [Need.ARGMAX] * max_rows
        self._step: DecodeStep | None = None
        self._graphs: DecodeGraphs | None = None
        self._sizes = batch_buckets(max_rows)
        if isinstance(parts.attention, TritonAttention):
            self._step = DecodeStep(self.model, parts.attention, self._device_rows, max_rows)
        elif config.execution.cuda_graphs:
            raise ValueError("execution.cuda_graphs=true: needs attention=triton; choose it, or cuda_graphs=null")
        if self._on_gpu:
            self._warm_up(config)
        self._compiled = num_compilations()

    def memory(self) -> MemoryReport:
        return self.parts.memory()

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> Launched:
        self._apply(plan)
        if not plan.chunks:
            return Done(result=StepResult(samples=()))
        only_decodes = all(chunk.num_tokens == 1 and chunk.samples for chunk in plan.chunks)
        # Decodes first, as the attention kernels want them; `sorted` keeps the rest in order.
        chunks = plan.chunks if only_decodes else sorted(plan.chunks, key=lambda chunk: chunk.num_tokens > 1)
        rows = self._rows.of(chunks)
        need = max(self._needs[row] for row in rows.tolist())
        if only_decodes and self._step is not None:
            begun, sampled, logits = self._decode(chunks, rows, need)
        else:
            begun, sampled, logits = self._mixed(chunks, rows, need)
        sampling = [(chunk, row) for chunk, row in zip(chunks, rows.tolist(), strict=True) if chunk.samples]
        asked = [(i, self._rows.params[row].logprobs) for i, (_, row) in enumerate(sampling)]
        told = _Logprobs.start(logits, sampled, [(i, number) for i, number in asked if number is not None])
        return _Flight(
            runner=self,
            order=[chunk.request_id for chunk in plan.chunks if chunk.samples],
            chunks=[chunk for chunk, _ in sampling],
            sampled=download(sampled[: len(sampling)]),
            logprobs=told,
            begun=begun,
            ended=self._record(),
        )

    def _apply(self, plan: StepPlan) -> None:
        self._rows.release(plan)
        new_rows = [(self._rows.add(new), new) for new in plan.new_rows]
        for row, new in new_rows:
            self._needs[row] = Need.of(new.sampling_params)
        self._device_rows.add(new_rows)
        self._rows.update_tables(plan)
        self._device_rows.update_tables(plan)
        if plan.copies:
            places = np.array([(copy.source, copy.target) for copy in plan.copies], dtype=np.int64).T.copy()
            sources, targets = upload(places, self.parts.device)
            self.parts.copy_blocks(sources, targets)

    def _decode(self, chunks: Sequence[Chunk], rows: np.ndarray, need: Need) -> tuple[Any, Tensor, Tensor | None]:
        """Sampled tokens and logits, padded, and the event before them: after the inputs are on their way, so that a
        device which waits for the host is not taken for a busy one."""
        assert self._step is not None
        size = len(chunks)
        if self._graphs is not None:
            size = next(bucket for bucket in self._sizes if bucket >= size)
        positions = np.array([chunk.start for chunk in chunks], dtype=np.int32)
        self._step.fill(rows, positions, size)
        begun = self._record()
        if self._graphs is not None:
            return begun, *self._graphs.replay(size, need)
        return begun, *self._step.compute(size, need)

    def _mixed(self, chunks: Sequence[Chunk], rows: np.ndarray, need: Need) -> tuple[Any, Tensor, Tensor]:
        packed = self._rows.pack(chunks, rows)
        device = self.parts.device
        token_rows = upload(packed.token_rows.astype(np.int32), device)
        positions = upload(packed.positions, device)
        begun = self._record()
        token_ids, slots = self._device_rows.gather(token_rows, positions)
        samples = upload(packed.sample_indices, device)
        batch = PackedBatch(
            token_ids=token_ids,
            positions=positions,
            slot_mapping=slots,
            cu_seqlens_q=packed.cu_seqlens_q,
            context_lens=packed.context_lens,
            block_table=packed.block_table,
            sample_indices=samples,
        )
        hidden = self._forward(batch)
        if len(samples) == 0:
            return begun, hidden.new_empty(0, dtype=torch.int64), hidden[:0]
        logits = self.model.compute_logits(hidden if len(samples) == len(hidden) else hidden.index_select(0, samples))
        rows_of_samples, targets = token_rows.index_select(0, samples), positions.index_select(0, samples).int() + 1
        sampled = torch.empty(len(samples), dtype=torch.int64, device=device)
        self._device_rows.sample_(logits, rows_of_samples, targets, need, sampled)
        return begun, sampled, logits

    def forward(self, batch: PackedBatch) -> Tensor:
        """[N, C], see `ReadingRunner`."""
        hidden = self._forward(batch)
        # Compiled for this batch, and no step's doing.
        self.new_compilations()
        return hidden

    def _forward(self, batch: PackedBatch) -> Tensor:
        metadata = self._attention.prepare(batch)
        if isinstance(self._attention, TritonAttention):
            return self.model.forward(batch.token_ids, batch.positions, attend_with(self._attention, metadata))

        def attend(qkv: Tensor, layer: int, rotary: Rotary, at: Any) -> Tensor:
            rotary.rotate_(qkv, at)
            return self._attention.attend(qkv, layer, metadata)

        return self.model.forward(batch.token_ids, batch.positions, attend)

    @torch.inference_mode()
    def _warm_up(self, config: EngineConfig) -> None:
        """Compile all that any step will launch, and capture the graphs, so that neither happens while requests wait.

        The steps made up for it have rows of nobody: they write nowhere, and read the pool's first block.
        """
        self._device_rows.warm_up()
        max_rows, most_blocks = self._rows.block_table.shape
        longest = min(config.scheduler.max_num_batched_tokens, self.max_model_len)
        if isinstance(self._attention, TritonAttention):
            # Kernels are chosen by how long the longest chunk is, and by how long a context could be.
            for length in sorted({min(length, longest) for length in (1, 2, 3, 8, 16, 17, 33, 65, 129, 257, longest)}):
                for num_blocks in {-(-length // self._rows.block_size), most_blocks}:
                    self._forward(self._made_up_batch([1] * min(3, max_rows - 1) + [length], num_blocks))
        for num_rows in (1, 2, max_rows):
            nobody = torch.full((num_rows,), -1, dtype=torch.int32, device=self.parts.device)
            logits = self.model.compute_logits(
                torch.zeros((num_rows, self.model.spec.hidden_size), dtype=self.parts.dtype, device=self.parts.device)
            )
            sampled = torch.empty(num_rows, dtype=torch.int64, device=self.parts.device)
            for need in Need:
                self._device_rows.sample_(logits, nobody, nobody, need, sampled)
        if self._step is not None and config.execution.cuda_graphs is not False:
            self._graphs = DecodeGraphs(self._step, self._sizes)
        elif self._step is not None:
            for num_rows in self._sizes:
                for need in Need:
                    self._step.compute(num_rows, need)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()

    def _made_up_batch(self, lens: list[int], num_blocks: int) -> PackedBatch:
        nobody = torch.full((sum(lens),), -1, dtype=torch.int64, device=self.parts.device)
        return PackedBatch(
            token_ids=torch.zeros_like(nobody),
            positions=torch.zeros_like(nobody),
            slot_mapping=nobody,
            cu_seqlens_q=np.concatenate([[0], np.cumsum(lens)]).astype(np.int32),
            context_lens=np.array(lens, dtype=np.int64),
            block_table=np.zeros((len(lens), num_blocks), dtype=np.int32),
            sample_indices=nobody,
        )

    def _record(self) -> Any:
        if not self._on_gpu:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def new_compilations(self) -> int:
        """Kernels compiled since the last call."""
        before, self._compiled = self._compiled, num_compilations()
        return self._compiled - before

    def failed(self, chunk: Chunk) -> SampledTokens:
        return failed(chunk, self._path, self.parts.dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Flight:
    """A step on its way: what to wait for, and whose tokens they are."""

    runner: DeviceRunner
    # Requests that sample, in the plan's order, and their chunks in that of `sampled`.
    order: list[int]
    chunks: list[Chunk]
    # [num_samples] int64 on the host
    sampled: Tensor
    logprobs: _Logprobs | None
    begun: Any
    ended: Any

    def wait(self) -> StepResult:
        if self.ended is not None:
            self.ended.synchronize()
        told = {} if self.logprobs is None else self.logprobs.of_rows()
        by_request = {}
        for i, (chunk, token_id) in enumerate(zip(self.chunks, self.sampled.tolist(), strict=True)):
            by_request[chunk.request_id] = (
                self.runner.failed(chunk)
                if token_id < 0
                else SampledTokens(
                    request_id=chunk.request_id, token_ids=(token_id,), logprobs=(told[i],) if i in told else ()
                )
            )
        return StepResult(
            samples=tuple(by_request[request_id] for request_id in self.order),
            device_s=None if self.ended is None else self.begun.elapsed_time(self.ended) / 1000,
            num_compilations=self.runner.new_compilations(),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Logprobs:
    """Raw logprobs of the rows that asked for some, on their way to the host."""

    # (row of the step, how many likeliest)
    asked: list[tuple[int, int]]
    # [len(asked), 1 + most that any asked for]
    token_ids: Tensor
    values: Tensor

    @classmethod
    def start(cls, logits: Tensor | None, sampled: Tensor, asked: list[tuple[int, int]]) -> _Logprobs | None:
        if not asked:
            return None
        assert logits is not None, "who asks for logprobs needs all"
        rows = upload(np.array([row for row, _ in asked], dtype=np.int64), logits.device)
        ids, values = logprobs(
            logits.index_select(0, rows),
            sampled.index_select(0, rows),
            num_likeliest=max(number for _, number in asked),
        )
        return cls(asked=asked, token_ids=download(ids), values=download(values))

    def of_rows(self) -> dict[int, dict[int, float]]:
        table = zip(self.asked, self.token_ids.tolist(), self.values.tolist(), strict=True)
        return {row: dict(zip(ids[: 1 + k], values[: 1 + k], strict=True)) for (row, k), ids, values in table}
