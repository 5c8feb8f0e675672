"""From a sweep's folder to figures: load -> compare -> plot -> report.

    import analysis
    sweep = analysis.load("runs/quickstart")
    sweep.runs, sweep.requests, sweep.steps, sweep.quality   # plain DataFrames
    analysis.points(sweep)                                   # one row a point: all main metrics, spread, speed-up
    sweep.points("ttft_p99_s")                               # one row a point: knobs, mean, interval, n
    analysis.compare(sweep, baseline="quantization=none")    # ratios with intervals, and verdicts
    analysis.pivot(sweep, rows="scheduler", columns="block_size")
    analysis.pareto(sweep, x="peak_process_bytes", y="output_throughput_tps")
    analysis.precision(sweep)                                # quality, speed and memory of each precision, side by side
    analysis.scheduling(sweep)                               # every policy under every load, all figures of schedulers
    analysis.winners(sweep)                                  # which policy is best where, and who is not told from it
    analysis.fidelity(sweep)                                 # simulated against real points: errors and rankings
    analysis.capacity(sweep)                                 # the highest rate within the SLO, of each policy
    analysis.timeline(sweep, "scheduler=srpt")               # one run, request by request; `write_timeline` draws it
    analysis.speculation(sweep)                              # speed-up, acceptance and break-even of each drafter
    analysis.effects(sweep)                                  # what each knob does, and each two together

Reads files only: nothing here imports the engine or the harness, so results from another machine or commit read alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from analysis.load import Sweep, load

if TYPE_CHECKING:
    from analysis.comparison import compare
    from analysis.factors import effects
    from analysis.lane_figures import write_timeline
    from analysis.lanes import timeline
    from analysis.naming import attach, axes, labels, varying
    from analysis.precisions import precision
    from analysis.report import write_report
    from analysis.scheduling_capacity import capacity
    from analysis.scheduling_fidelity import fidelity
    from analysis.scheduling_winners import winners
    from analysis.schedulings import scheduling
    from analysis.speculations import speculation
    from analysis.summary import failures, points
    from analysis.views import pareto, pivot

__all__ = [
    "Sweep",
    "attach",
    "axes",
    "capacity",
    "compare",
    "effects",
    "failures",
    "fidelity",
    "labels",
    "load",
    "pareto",
    "pivot",
    "points",
    "precision",
    "scheduling",
    "speculation",
    "timeline",
    "varying",
    "winners",
    "write_report",
    "write_timeline",
]

# No name here is also a module: importing that module would take the name over. `load` is safe, being bound last.
# scipy, statsmodels and matplotlib take a second to import; whoever only loads tables does not wait for them.
_HOME = {
    "attach": "analysis.naming",
    "capacity": "analysis.scheduling_capacity",
    "fidelity": "analysis.scheduling_fidelity",
    "scheduling": "analysis.schedulings",
    "winners": "analysis.scheduling_winners",
    "axes": "analysis.naming",
    "compare": "analysis.comparison",
    "effects": "analysis.factors",
    "failures": "analysis.summary",
    "labels": "analysis.naming",
    "pareto": "analysis.views",
    "pivot": "analysis.views",
    "points": "analysis.summary",
    "precision": "analysis.precisions",
    "speculation": "analysis.speculations",
    "timeline": "analysis.lanes",
    "varying": "analysis.naming",
    "write_report": "analysis.report",
    "write_timeline": "analysis.lane_figures",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'analysis' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
