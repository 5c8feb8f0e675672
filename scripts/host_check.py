#!/usr/bin/env python
"""What the host does in a decode step, without a device: an engine whose runner answers at once. Seconds.

    .venv/bin/python scripts/host_check.py

Medians of 200 steps, in microseconds: the whole step, scheduling, and commit with advance. With overlap the device
hides this as long as its own step takes longer.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from minivllm import SamplingParams
from minivllm.config import CacheConfig, EngineConfig, ExecutionConfig, ModelConfig, SchedulerConfig
from minivllm.engine import Engine
from minivllm.plan import SampledTokens, StepPlan, StepResult
from minivllm.runner.base import Done, MemoryReport


class AnswersAtOnce:
    """Says 7."""

    num_blocks, num_swap_blocks, max_model_len = 200_000, 0, 4096
    vocab_size, eos_token_ids = 1000, frozenset[int]()

    def launch(self, plan: StepPlan) -> Done:
        ids = [chunk.request_id for chunk in plan.others if chunk.samples]
        samples = tuple(SampledTokens(request_id=i, token_ids=(7,)) for i in ids)
        return Done(result=StepResult(samples=samples, decoded=(7,) * len(plan.decodes)))

    def memory(self) -> MemoryReport:
        return MemoryReport(weights_bytes=0, kv_cache_bytes=0)


def main() -> None:
    print("requests  block size  step us  schedule us  commit us")
    for num_requests in (1, 64, 256):
        for block_size in (16, 256):
            config = EngineConfig(
                model=ModelConfig(path="none"),
                cache=CacheConfig(block_size=block_size),
                scheduler=SchedulerConfig(max_num_seqs=num_requests, max_num_batched_tokens=16_384),
                execution=ExecutionConfig(overlap=True),
            )
            engine = Engine(config, AnswersAtOnce())
            for i in range(num_requests):
                params = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
                engine.add_request([1 + (i + j) % 900 for j in range(512)], params)
            for _ in range(40):
                engine.step()
            steps = [engine.step() for _ in range(200)]
            whole, schedule, commit = (
                1e6 * statistics.median(getattr(step, name) for step in steps)
                for name in ("duration_s", "schedule_s", "commit_s")
            )
            print(f"{num_requests:8}  {block_size:10}  {whole:7.0f}  {schedule:11.0f}  {commit:9.0f}")


if __name__ == "__main__":
    main()
