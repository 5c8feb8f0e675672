"""First come, first served, with chunked prefills beside decodes: Orca's iteration-level batching (OSDI 2022) over
vLLM's paged cache (arXiv 2309.06180), running requests first, so that decodes never stall behind a prefill
(Sarathi-Serve, arXiv 2403.02310)."""

from __future__ import annotations

from minivllm.scheduler.base import KeyChanges, SchedulingPolicy


class FCFS(SchedulingPolicy):
    """The default: serve in order of arrival."""

    key_changes = KeyChanges.NEVER
