"""The runner for GPUs: tokens, tables and parameters live on the device, and a launch returns while the device works.

Steps that only decode are replayed as CUDA graphs (`decode`, `graphs`); steps with prompts in them are launched kernel
by kernel, decodes first. Either way the sampled tokens stay on the device for the next step, and a copy of them travels
to the host, to be read when the step is waited for. So do drafts that the device computed: they are verified before the
host has seen them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from minivllm.attention.base import PackedBatch
from minivllm.attention.triton_backend import TritonAttention
from minivllm.clock import Clock, WallClock
from minivllm.config import EngineConfig
from minivllm.plan import Chunk, SampledTokens, StepPlan, StepResult
from minivllm.runner.base import Done, Launched, MemoryReport
from minivllm.runner.device_drafts import DeviceDrafts
from minivllm.runner.device_flight import Flight, Logprobs, Marks, Times
from minivllm.runner.device_rows import DeviceRows, Need
from minivllm.runner.device_steps import Computed, DeviceSteps
from minivllm.runner.device_warm_up import LENGTHS, warm_up_drafts
from minivllm.runner.drafting import StepDrafts
from minivllm.runner.forward import attend_of, resume_forward
from minivllm.runner.model_runner import failed
from minivllm.runner.parts import Parts
from minivllm.runner.rows import Rows
from minivllm.speculation.model import ModelDrafter
from minivllm.transfer import download, upload
from minivllm_kernels.compilations import num_compilations
from minivllm_kernels.prepare_inputs.kernel import store_rows_


class DeviceRunner:
    """Weights, K/V tensors and rows on a GPU (or, under Triton's interpreter, on a CPU).

    Args:
        config: the engine's.
        parts: made for it.
        clock: of what is timed where there is no GPU.

    Raises:
        ValueError: CUDA graphs with an attention backend that they cannot hold.
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
        self._path = config.model.path
        self._attention = parts.attention
        self._on_gpu = parts.device.type == "cuda"
        self._clock = clock or WallClock()

        max_rows = config.scheduler.max_num_seqs
        self._rows = Rows(max_rows, self.max_model_len, config.cache.block_size)
        self._device_rows = DeviceRows(self._rows, max_rows, self.max_model_len, parts.device)
        self._needs = [Need.ARGMAX] * max_rows
        speculation = config.speculation if parts.drafter is not None else None
        self._drafts: DeviceDrafts | None = None
        if parts.drafter is not None:
            self._drafts = DeviceDrafts(
                parts.drafter, parts, self._rows, self._device_rows, config.speculation.sample_drafts
            )
        self._steps: DeviceSteps | None = None
        if isinstance(parts.attention, TritonAttention):
            self._steps = DeviceSteps(
                self.model,
                parts.attention,
                self._device_rows,
                max_rows,
                parts.features,
                speculation,
                draws=config.speculation.sample_drafts and isinstance(parts.drafter, ModelDrafter),
            )
        elif config.execution.cuda_graphs:
            raise ValueError("execution.cuda_graphs=true: needs attention=triton; choose it, or cuda_graphs=null")
        self._compiled = 0
        if self._on_gpu:
            self._warm_up(config)
        self.new_compilations()

    def memory(self) -> MemoryReport:
        return self.parts.memory()

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> Launched:
        self._apply(plan)
        chunks: Sequence[Chunk] = plan.chunks
        if not chunks:
            return Done(result=StepResult(samples=()))
        order = [*plan.decodes, *(chunk.request_id for chunk in plan.others if chunk.samples)]
        only_decodes = all(chunk.num_tokens == 1 and chunk.samples for chunk in plan.others)
        # Decodes first, as the attention kernels want them, then verifications; `sorted` keeps the rest in order.
        if not only_decodes or self._drafts is not None:
            chunks = sorted(chunks, key=lambda chunk: (chunk.num_tokens > 1, chunk.num_draft_tokens > 0))
        rows = self._rows.of(chunks)
        marks = Marks(self._on_gpu, self._clock)
        drafts = started = drafted = None
        if self._drafts is not None:
            started = marks.now()
            drafts = self._drafts.propose(chunks, rows)
            drafted = marks.now()
        # None: these drafts are not sampled as others are.
        need = None
        if drafts is None or self._drafts is None or not self._drafts.needs_rule(drafts):
            need = max(self._needs[row] for row in rows.tolist())
        if only_decodes and self._steps is not None and self._steps.serves(drafts):
            computed = self._decode(self._steps, chunks, rows, drafts, need, marks)
        else:
            computed = self._mixed(chunks, rows, drafts, need, marks)
        num_sampled = sum(
            1 + (0 if drafts is None else int(drafts.counts[i])) for i, chunk in enumerate(chunks) if chunk.samples
        )
        sampled = computed.sampled[:num_sampled]
        told = Logprobs.start(computed.logits, sampled, self._asked(chunks, rows, drafts))
        if drafts is not None and drafts.token_ids is None:
            assert drafts.proposal is not None
            sampled = torch.cat([sampled, drafts.proposal.token_ids.reshape(-1)])
        sampled = download(sampled)
        return Flight(
            order=order,
            num_decodes=len(plan.decodes),
            chunks=chunks,
            rows=rows,
            drafts=drafts,
            speculation=self._drafts,
            sampled=sampled,
            logprobs=told,
            times=Times(marks=marks, started=started, drafted=drafted, begun=computed.begun, ended=marks.now()),
            failed=self.failed,
            num_compilations=self.new_compilations,
        )

    def _apply(self, plan: StepPlan) -> None:
        self._rows.release(plan)
        new_rows = [(self._rows.add(new), new) for new in plan.new_rows]
        for row, new in new_rows:
            self._needs[row] = Need.of(new.sampling_params)
        self._device_rows.add(new_rows)
        self._rows.update_tables(plan)
        self._device_rows.update_tables(plan)
        self.parts.moves.apply(plan)
        if self._drafts is not None:
            self._drafts.tell(plan)

    def _asked(self, chunks: Sequence[Chunk], rows: np.ndarray, drafts: StepDrafts | None) -> list[tuple[int, int]]:
        """(row of logits, how many likeliest) of all that ask for logprobs."""
        asked, end = [], 0
        for i, chunk in enumerate(chunks):
            if chunk.samples:
                first, end = end, end + 1 + (0 if drafts is None else int(drafts.counts[i]))
                number = self._rows.params[rows[i]].logprobs
                if number is not None:
                    asked += [(at, number) for at in range(first, end)]
        return asked

    def _decode(
        self,
        steps: DeviceSteps,
        chunks: Sequence[Chunk],
        rows: np.ndarray,
        drafts: StepDrafts | None,
        need: Need | None,
        marks: Marks,
    ) -> Computed:
        positions = np.array([chunk.start for chunk in chunks], dtype=np.int64)
        counts = None if drafts is None else drafts.counts
        computed = steps.run(rows, positions, counts, need, marks.now)
        if need is not None:
            return computed
        assert drafts is not None and computed.logits is not None
        counts = drafts.counts + 1
        ends = np.cumsum(counts)
        targets = np.arange(ends[-1]) + np.repeat(positions - ends + counts + 1, counts)
        places = upload(np.stack([np.repeat(rows, counts), targets]).astype(np.int32), self.parts.device)
        sampled = self._sample_by_rule(computed.logits[: ends[-1]], chunks, rows, drafts, places)
        return replace(computed, sampled=sampled)

    def _mixed(
        self,
        chunks: Sequence[Chunk],
        rows: np.ndarray,
        drafts: StepDrafts | None,
        need: Need | None,
        marks: Marks,
    ) -> Computed:
        tree = None if drafts is None else drafts.tree
        packed = self._rows.pack(chunks, rows, None if drafts is None else drafts.counts, tree)
        device = self.parts.device
        token_rows = upload(packed.token_rows.astype(np.int32), device)
        places = upload(packed.places, device)
        positions = places if tree is None else upload(packed.positions, device)
        begun = marks.now()
        token_ids, slots = self._device_rows.gather(token_rows, places)
        samples = upload(packed.sample_indices, device)
        batch = PackedBatch(
            token_ids=token_ids,
            positions=positions,
            slot_mapping=slots,
            cu_seqlens_q=packed.cu_seqlens_q,
            context_lens=packed.context_lens,
            block_table=packed.block_table,
            sample_indices=samples,
            trees=packed.trees,
        )
        if drafts is None or drafts.resume is None:
            hidden = self._forward(batch)
        else:
            hidden = resume_forward(self.model, self._attention, batch, drafts.resume, drafts.counts)
        if self.parts.features is not None:
            store_rows_(self.parts.features, slots, hidden)
        if len(samples) == 0:
            return Computed(sampled=hidden.new_empty(0, dtype=torch.int64), logits=hidden[:0], begun=begun)
        logits = self.model.compute_logits(hidden if len(samples) == len(hidden) else hidden.index_select(0, samples))
        rows_of_samples, targets = token_rows.index_select(0, samples), positions.index_select(0, samples).int() + 1
        if need is None:
            assert drafts is not None
            sampled = self._sample_by_rule(logits, chunks, rows, drafts, torch.stack([rows_of_samples, targets]))
        else:
            sampled = torch.empty(len(samples), dtype=torch.int64, device=device)
            self._device_rows.sample_(logits, rows_of_samples, targets, need, sampled, store=tree is None)
        return Computed(sampled=sampled, logits=logits, begun=begun)

    def _sample_by_rule(
        self, logits: Tensor, chunks: Sequence[Chunk], rows: np.ndarray, drafts: StepDrafts, places: Tensor
    ) -> Tensor:
        """See `DeviceDrafts.sample`; places are [2, M] int32, rows and positions of the tokens."""
        assert self._drafts is not None
        sampled = self._drafts.sample(logits, chunks, rows, drafts)
        if drafts.tree is None:
            self._device_rows.keep(places, sampled)
        return sampled

    def forward(self, batch: PackedBatch) -> Tensor:
        """[N, C], see `ReadingRunner`."""
        hidden = self._forward(batch)
        # Compiled for this batch, and no step's doing.
        self.new_compilations()
        return hidden

    def _forward(self, batch: PackedBatch) -> Tensor:
        return self.model.forward(batch.token_ids, batch.positions, attend_of(self._attention, batch))

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
            for length in sorted({min(length, longest) for length in (*LENGTHS, longest)}):
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
        # What drafts is made up kernel by kernel; graphs come when it is known what they have to hold.
        steps, self._steps = self._steps, None
        chains = self._drafts is not None and warm_up_drafts(self, self._drafts.drafter, config)
        self._steps = steps
        if self._steps is not None:
            graphs = config.execution.cuda_graphs is not False
            self._steps.warm_up(graphs=graphs, chains=chains, drafter=self.parts.drafter)
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

    def new_compilations(self) -> int:
        """Kernels compiled since the last call."""
        before, self._compiled = self._compiled, num_compilations()
        return self._compiled - before

    def failed(self, chunk: Chunk) -> SampledTokens:
        return failed(chunk, self._path, self.parts.dtype)
