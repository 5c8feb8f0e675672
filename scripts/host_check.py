#!/usr/bin/env python
"""What the host does in a decode step, without a device: an engine whose runner answers at once. Seconds.

    .venv/bin/python scripts/host_check.py

Medians of 200 steps, in microseconds: the whole step, scheduling, and commit with advance. With overlap the device
hides this as long as its own step takes longer. Then the same for each policy that is a key, with a queue behind it.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from minivllm import SamplingParams
from minivllm.config import CacheConfig, Component, EngineConfig, ExecutionConfig, ModelConfig, SchedulerConfig
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


# Those that are a key, and no more.
POLICIES = {
    "fcfs.FCFS": {},
    "sjf.ShortestJobFirst": {},
    "random_order.RandomOrder": {},
    "reverse.Reverse": {},
    "priority.Priority": {},
    "srpt.ShortestRemaining": {},
    "aging.Aging": {},
    "edf.EarliestDeadline": {},
    "mlfq.MultiLevelFeedback": {},
}


def make_engine(num_requests: int, block_size: int, policy: str, *, overlap: bool, num_waiting: int = 0) -> Engine:
    """An engine in which `num_requests` decode, and others wait for their seats."""
    config = EngineConfig(
        model=ModelConfig(path="none"),
        cache=CacheConfig(block_size=block_size),
        scheduler=SchedulerConfig(
            policy=Component(target=f"minivllm.scheduler.{policy}", kwargs=POLICIES[policy]),
            max_num_seqs=num_requests,
            max_num_batched_tokens=16_384,
        ),
        execution=ExecutionConfig(overlap=overlap),
    )
    engine = Engine(config, AnswersAtOnce())
    for i in range(num_requests + num_waiting):
        # Whoever waits has more to say, so that nobody has to go.
        params = SamplingParams(temperature=0, max_tokens=400 if i < num_requests else 800, ignore_eos=True)
        prompt = [1 + (i + j) % 900 for j in range(512)]
        engine.add_request(prompt, params, priority=i // num_requests)
    for _ in range(40):
        engine.step()
    return engine


def medians(engine: Engine) -> tuple[float, ...]:
    """Of 200 steps, in microseconds: the whole, scheduling, commit with advance."""
    steps = [engine.step() for _ in range(200)]
    names = ("duration_s", "schedule_s", "commit_s")
    return tuple(1e6 * statistics.median(getattr(step, name) for step in steps) for name in names)


def main() -> None:
    print("with overlap\nrequests  block size  step us  schedule us  commit us")
    for num_requests in (1, 64, 256):
        for block_size in (16, 256):
            whole, schedule, commit = medians(make_engine(num_requests, block_size, "fcfs.FCFS", overlap=True))
            print(f"{num_requests:8}  {block_size:10}  {whole:7.0f}  {schedule:11.0f}  {commit:9.0f}")
    print("\n256 requests, blocks of 16, no overlap\npolicy              waiting  step us  schedule us")
    for policy in POLICIES:
        for num_waiting in (0, 1000):
            engine = make_engine(256, 16, policy, overlap=False, num_waiting=num_waiting)
            whole, schedule, _ = medians(engine)
            print(f"{policy.partition('.')[0]:18}  {num_waiting:7}  {whole:7.0f}  {schedule:11.0f}")


if __name__ == "__main__":
    main()
