"""Open loop: requests arrive by a Poisson process and wait if the engine does not keep up. Latency is counted from
the arrival, so that a slow engine cannot hide its own queue."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.workloads.closed_loop import ClosedLoop


@dataclass(frozen=True, kw_only=True)
class Poisson(ClosedLoop):
    """The requests of `ClosedLoop`, at `request_rate_rps`.

    Its streams are those of a closed loop too: at the same seed both send the same prompts.
    """
