"""A workload on one engine: warmed up on prompts of its own, then measured, then made into rows.

The two do not touch. Warm-up prompts are drawn from a stream of their own, and any that the measurement also has is
drawn again; the prefix cache is dropped between the two, and so is the peak of the GPU's memory; everything else is
counted per request and per step, so there is no counter to carry over. Rows are written as they come (see `streams`).
The hashes of all prompts are in `requests`, warm-up ones too, so that whoever reads the tables need not believe this.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from experiments import metrics
from experiments.drive import Collected, Driven, drive
from experiments.meters import open_meters
from experiments.observe import Observer, Report, SeenRunner
from experiments.points import RunSettings, located
from experiments.request_stream import RequestStream
from experiments.roofline import Roofline, fractions
from experiments.step_stream import StepStream
from experiments.streams import TableStream
from experiments.workloads.base import WorkloadItem, warmup_items
from experiments.workloads.offered import offered_load
from experiments.workloads.prompts import LengthsOnly, PromptSource, RandomTokens, TextPrompts, read_documents
from minivllm.llm import LLM
from minivllm.quantization.precision import Precision
from minivllm.runner.simulated import SimulatedRunner

HELDOUT = "experiments/assets/heldout.jsonl"


class Measurement:
    """One run's workload, made for its engine.

    Args:
        settings: of the run.
        llm: what runs it.
        folder, run_id: where its tables go.
    """

    def __init__(self, settings: RunSettings, llm: LLM, folder: Path, run_id: str) -> None:
        self._settings, self._engine = settings, llm.engine
        self._tables = {
            name: TableStream(folder / name / f"{run_id}.parquet", name, run_id) for name in ("requests", "steps")
        }
        max_model_len = self._engine.runner.max_model_len
        self._load = offered_load(settings, lambda prompts: _source(prompts, llm), max_model_len=max_model_len)
        # On a virtual clock requests are made as they are sent, however many; on a real one that would take its time.
        simulated = settings.engine.simulation is not None
        self._items: Iterable[WorkloadItem] = self._load if simulated else list(self._load)
        if next(iter(self._items), None) is None:
            raise ValueError(f"workload._target_={settings.workload.target!r}: made no requests")

    def warm_up(self) -> None:
        """Run other prompts of the same shape, and forget what they left."""
        settings, engine = self._settings, self._engine
        device, count = settings.engine.execution.device, settings.num_warmup_requests
        # A simulation does not look at tokens, and goes through no million of prompts for two.
        measured = list(islice(self._load, count)) if settings.engine.simulation is not None else list(self._items)
        items = warmup_items(measured, count, engine.runner.vocab_size, self._load.streams())
        self._warm, runner = Collected(), engine.runner
        if isinstance(runner, SimulatedRunner):
            # Only what depends on having served somebody before is kept: ids, and what policies learned.
            runner.is_warming_up = True
        drive(engine, items, settings.sampling, concurrency=max(1, len(items)), listener=self._warm)
        if isinstance(runner, SimulatedRunner):
            runner.is_warming_up = False
        assert not engine.has_unfinished
        engine.reset_prefix_cache()
        if device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
        self._meters = open_meters(device)

    def measure(self, report: Report) -> Driven:
        """Run the workload.

        Args:
            report: told of the progress.
        """
        settings, engine, meters = self._settings, self._engine, self._meters
        runner, speculates = engine.runner, settings.engine.speculation.enabled
        simulated = settings.engine.simulation is not None
        roofline = Roofline.of(runner, engine.memory(), engine.block_size)
        engine.runner = SeenRunner(runner)
        self._sensors = meters.sensors("start")
        # What was imported and loaded stays: the collector need not look at it again in the middle of a step.
        gc.collect()
        gc.freeze()
        # The measurement begins now: what stands between here and `drive` takes microseconds.
        origin_s = engine.clock.now_s()
        self._requests = RequestStream(
            self._tables["requests"], settings.slo, origin_s=origin_s, speculates=speculates, hashes=not simulated
        )
        self._steps = StepStream(
            self._tables["steps"],
            origin_s=origin_s,
            num_blocks=engine.num_blocks,
            block_size=engine.block_size,
            speculates=speculates,
        )
        self._observer = Observer(
            engine,
            self._requests,
            self._steps,
            roofline=roofline,
            meter=meters.energy,
            report=report,
            total=self._load.num_requests,
            looks_at_memory=not simulated,
        )
        meters.energy.start()
        try:
            driven = drive(
                engine, self._items, settings.sampling, concurrency=self._load.concurrency, listener=self._observer
            )
        finally:
            gc.unfreeze()
            self._observer.close()
            engine.runner = runner
        self._requests.write_warmup(self._warm.requests)
        self._energy_j, self._energy_source = meters.energy.stop(driven.end_s - driven.start_s)
        self._sensors |= meters.sensors("end")
        return driven

    def close(self) -> None:
        """Put the tables in their place.

        Raises:
            WriteError: they cannot be written.
        """
        for stream in self._tables.values():
            stream.close()

    def discard(self) -> None:
        """Leave no table: the measurement did not come to its end."""
        for stream in self._tables.values():
            stream.discard()

    def verdict(self) -> dict[str, Any]:
        """Columns of `runs`. A run in which a request failed is no measurement."""
        requests = self._requests
        if requests.first_error is None:
            return {"status": "ok"}
        request_id, error = requests.first_error
        message = f"{requests.num_errors} of {requests.num_requests} requests failed; request {request_id}: {error}"
        return {"status": "error", "error_type": "RequestError", "error_message": message}

    def columns(self, driven: Driven, peaks: Mapping[str, Any] | None) -> dict[str, Any]:
        """Columns of `runs`.

        Args:
            driven: what ran.
            peaks: of the machine.
        """
        settings, engine, steps = self._settings, self._engine, self._steps
        speculation, last_due_s = settings.engine.speculation, driven.last_due_s
        run = (
            self._requests.run_columns(
                num_offered=driven.num_offered, last_due_s=None if last_due_s is None else last_due_s - driven.start_s
            )
            | steps.run_columns()
            | self._observer.run_columns()
        )
        memory = engine.memory()
        bandwidth, flops_per_s = self._ceilings(peaks)
        return (
            run
            | metrics.economy(run["num_output_tokens"], run["duration_s"], self._energy_j, settings.price_per_hour)
            | fractions(run["counted_bytes"], run["counted_flops"], steps.busy_s, bandwidth, flops_per_s)
            | self._sensors
            | _precision_columns(memory.precision)
            | {
                "workload_sha256": self._load.sha256,
                "text_valid": speculation.keeps_text,
                "energy_source": self._energy_source,
                "env.peak_bandwidth_bytes_per_s": bandwidth,
                "env.peak_flops_per_s": flops_per_s,
                "weights_bytes": memory.weights_bytes,
                "kv_cache_bytes": memory.kv_cache_bytes,
                "peak_allocated_bytes": memory.peak_allocated_bytes,
                "peak_reserved_bytes": memory.peak_reserved_bytes,
            }
        )

    def _ceilings(self, peaks: Mapping[str, Any] | None) -> tuple[float | None, float | None]:
        """(bytes a second, FLOPs a second in the dtype of the model)."""
        model = getattr(self._engine.runner, "model", None)
        if peaks is None or model is None:
            return None, None
        return peaks["bandwidth_bytes_per_s"], peaks["flops_per_s"].get(str(model.dtype).removeprefix("torch."))


def _precision_columns(precision: Precision | None) -> dict[str, Any]:
    if precision is None:
        return {}
    return {
        "quantization": precision.name,
        "bits_per_weight": precision.bits_per_weight,
        "num_quantized_weights": precision.num_quantized_weights,
        "quantized_bytes": precision.num_quantized_bytes,
    }


def _source(prompts: str, llm: LLM) -> PromptSource:
    if prompts == "random":
        return RandomTokens(llm.engine.runner.vocab_size)
    if prompts == "lengths_only":
        return LengthsOnly(llm.engine.runner.vocab_size)
    path = located(HELDOUT if prompts == "heldout" else prompts)
    assert path is not None
    documents, tokenizer = read_documents(path), llm.tokenizer

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids

    return TextPrompts(documents, encode, tokenizer.bos_token_id)
