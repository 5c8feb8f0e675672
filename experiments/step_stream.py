"""Steps that are over, made into rows of `steps` and columns of `runs` as they come."""

from __future__ import annotations

import dataclasses
from operator import attrgetter
from typing import Any

import numpy as np

from experiments.metrics import ratio
from experiments.streams import TableStream
from experiments.tables import STEPS
from minivllm.plan import StepReport
from minivllm.simulation.base import StepWork

STEPS_AT_ONCE = 10_000
# Of a step, and null where speculation is off.
_SPECULATED = ("num_draft_tokens", "num_accepted_tokens", "num_verifications")
_SUMMED = (
    *("schedule_s", "run_s", "commit_s", "client_s", "duration_s", "device_s", "draft_s", "verify_s"),
    *("kv_utilization_fraction", "kv_fragmentation_fraction", "counted_bytes", "counted_flops"),
    *("num_evictions", "num_preemptions", "num_compilations", "num_draft_tokens", "num_recomputed_tokens"),
    "num_swapped_blocks",
)


class StepStream:
    """Args:
    rows: where rows go; None keeps none.
    origin_s: the instant that times count from.
    num_blocks, block_size: of the KV pool.
    speculates: whether the engine drafts.
    """

    def __init__(
        self,
        rows: TableStream | None,
        *,
        origin_s: float,
        num_blocks: int,
        block_size: int,
        speculates: bool = False,
    ) -> None:
        self._rows, self._origin_s = rows, origin_s
        self._num_blocks, self._block_size = num_blocks, block_size
        reported = {f.name for f in dataclasses.fields(StepReport)} - (set() if speculates else set(_SPECULATED))
        reported &= {*STEPS.names, "num_recomputed_tokens"}
        self._names = sorted(reported)
        self._read = attrgetter(*self._names)
        self._block: list[tuple[Any, ...]] = []
        # (work, resident bytes, bytes and FLOPs that an ideal kernel moves and computes)
        self._seen: list[tuple[StepWork, int | None, int | None, int | None]] = []
        self._end_s = np.nan
        # Column -> sum and number of the values that are known.
        self._sums: dict[str, tuple[float, int]] = {}

    def add(
        self,
        report: StepReport,
        work: StepWork,
        process_bytes: int | None = None,
        counted_bytes: int | None = None,
        counted_flops: int | None = None,
    ) -> None:
        """A step that is over, and what was seen of it."""
        self._block.append(self._read(report))
        self._seen.append((work, process_bytes, counted_bytes, counted_flops))
        if len(self._block) >= STEPS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Take what has come."""
        if not self._block:
            return
        columns: dict[str, Any] = dict(zip(self._names, zip(*self._block, strict=True), strict=True))
        work, process_bytes, counted_bytes, counted_flops = zip(*self._seen, strict=True)
        num_rows, self._block, self._seen = len(self._block), [], []
        start_s, duration_s = np.array(columns["start_s"]), np.array(columns["duration_s"])
        used, unused = np.array(columns["kv_blocks_used"]), np.array(columns["kv_slots_unused"])
        ends_s = start_s + duration_s
        prefill_contexts = np.array([one.num_prefill_context_tokens for one in work])
        decode_contexts = np.array([one.num_decode_context_tokens for one in work])
        columns |= {
            "start_s": start_s - self._origin_s,
            "duration_s": duration_s,
            "client_s": start_s - np.concatenate(([self._end_s], ends_s[:-1])),
            "kv_utilization_fraction": used / self._num_blocks,
            "kv_fragmentation_fraction": np.where(used > 0, unused / np.maximum(used * self._block_size, 1), np.nan),
            "num_prefill_requests": [one.num_prefill_requests for one in work],
            "num_prefill_context_tokens": prefill_contexts,
            "num_context_tokens": prefill_contexts + decode_contexts,
            "num_query_key_pairs": np.array([one.num_prefill_pairs for one in work]) + decode_contexts,
            "process_bytes": process_bytes,
            "counted_bytes": counted_bytes,
            "counted_flops": counted_flops,
        }
        self._end_s = ends_s[-1]
        for name in _SUMMED:
            self._sum(name, columns.get(name))
        del columns["num_recomputed_tokens"]
        if self._rows is not None:
            self._rows.write(columns, num_rows)

    def _sum(self, name: str, values: Any) -> None:
        if values is None or values[0] is None and not any(value is not None for value in values):
            return
        array = np.array(values, dtype=np.float64)
        known = ~np.isnan(array)
        total, count = self._sums.get(name, (0.0, 0))
        self._sums[name] = total + float(array[known].sum()), count + int(known.sum())

    def _total(self, name: str) -> float:
        return self._sums.get(name, (0.0, 0))[0]

    def _count(self, name: str) -> int:
        return int(self._total(name))

    def _mean(self, name: str) -> float | None:
        return ratio(*self._sums.get(name, (0.0, 0)))

    @property
    def busy_s(self) -> float:
        """Time inside of steps."""
        self.flush()
        return self._total("duration_s")

    def run_columns(self) -> dict[str, Any]:
        """Columns of `runs`."""
        self.flush()
        known, total = self._sums, self._total
        host_s, run_s = total("schedule_s") + total("commit_s"), total("run_s")
        whole_s = total("duration_s") + total("client_s")
        columns = {
            "kv_blocks_total": self._num_blocks,
            "kv_utilization_mean_fraction": self._mean("kv_utilization_fraction"),
            # Of the slots in used blocks, those that hold no K/V.
            "kv_fragmentation_mean_fraction": self._mean("kv_fragmentation_fraction"),
            "num_evictions": self._count("num_evictions"),
            "num_preemptions": self._count("num_preemptions"),
            "num_recomputed_tokens": self._count("num_recomputed_tokens"),
            "num_swapped_blocks": self._count("num_swapped_blocks"),
            **{f"step_{part}_mean_s": self._mean(f"{part}_s") for part in ("schedule", "run", "commit", "client")},
            "host_fraction": ratio(host_s, host_s + run_s),
            "step_device_mean_s": self._mean("device_s"),
            "device_idle_fraction": max(0.0, 1 - total("device_s") / whole_s)
            if "device_s" in known and whole_s
            else None,
            "num_compilations": self._count("num_compilations"),
            "counted_bytes": total("counted_bytes") if "counted_bytes" in known else None,
            "counted_flops": total("counted_flops") if "counted_flops" in known else None,
        }
        if "num_draft_tokens" in known:
            shares = {part: ratio(total(f"{part}_s"), total("duration_s")) for part in ("draft", "verify")}
            columns |= {f"{part}_time_fraction": share for part, share in shares.items()}
        return columns
