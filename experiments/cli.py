"""The command line. Each command imports what it needs when it runs, so that `minivllm --help` answers at once."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from experiments.plan import SweepPlan
    from experiments.progress import Progress
    from experiments.sweep import Swept

_OVERRIDES = """\
overrides are Hydra's: group=member (scheduler=static), key=value (cache.block_size=8), +key=value for an argument
that a class of yours takes. Sweep with key=a,b or key=range(1,5) or group=glob(*), and repeat=range(3).
A class of yours: scheduler._target_=my_policies.Shortest, from the current folder.
"""
EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 only if every point succeeded, 2 for a mistake on the command line."""
    parser = argparse.ArgumentParser(
        prog="minivllm",
        description="Compose an inference engine from parts, sweep over them, and get tidy tables.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, what in (
        ("run", "run one point, even if it is complete already"),
        ("sweep", "run every point of a sweep that is not complete (experiment=quickstart where none is named)"),
        ("search", "run some points of a sweep, each chosen by what the others gave (search.num_trials=20)"),
        ("capacity", "for each point of a sweep, find the highest rate of arrivals that meets slo=..."),
    ):
        command = commands.add_parser(
            name, help=what, epilog=_OVERRIDES, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.add_argument("overrides", nargs="*", metavar="OVERRIDE")
        command.add_argument("--dry-run", action="store_true", help="list the points and run nothing")
    quantize = commands.add_parser(
        "quantize",
        help="write a model in another precision as a checkpoint: quantize FOLDER model=... quantization=...",
        epilog=_OVERRIDES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    quantize.add_argument("folder", metavar="OUT_FOLDER", help="absent or empty")
    quantize.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    report = commands.add_parser("report", help="table, web page, Markdown report and plots of a results folder")
    report.add_argument("folder", metavar="FOLDER")
    report.add_argument("--figures", metavar="DIR", help="also write every plot of the web page there, as SVG")
    report.add_argument("--terminal", action="store_true", help="verdicts and sparklines here, and no files")
    compare = commands.add_parser(
        "compare", help="each point against a baseline, or one sweep against another: ratio, interval, verdict"
    )
    compare.add_argument("folder", metavar="FOLDER")
    compare.add_argument("other", metavar="FOLDER2", nargs="?", help="compare its points with those of FOLDER")
    compare.add_argument("--baseline", metavar="KNOB=VALUE,...", help="the point to compare with, or its label")
    compare.add_argument(
        "--metric", default="output_throughput_tps", help="a column of runs (output_throughput_tps where none is named)"
    )
    compare.add_argument("--within", metavar="KNOB,...", default="", help="each setting of these has its own baseline")
    compare.add_argument(
        "--equal-within",
        metavar="PERCENT",
        type=float,
        default=1.0,
        help="what counts as equal (1 where none is named)",
    )
    tasks = commands.add_parser(
        "lm-eval",
        help="tasks of lm-evaluation-harness, asked of the engine that overrides compose",
        epilog=_OVERRIDES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tasks.add_argument("tasks", metavar="TASK,...", help="names that lm-eval knows")
    tasks.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    tasks.add_argument("--include", metavar="DIR", type=Path, help="a folder with tasks of yours, as YAML")
    tasks.add_argument("--limit", metavar="N", type=int, help="items a task (all where not given)")
    tasks.add_argument("--num-fewshot", metavar="N", type=int, help="examples before each item (the task's own number)")
    commands.add_parser("doctor", help="what this machine can run, and why not")
    parsed, rest = parser.parse_known_args(arguments)
    # Overrides may stand on both sides of an option.
    if not hasattr(parsed, "overrides") or any(word.startswith("-") for word in rest):
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
    else:
        parsed.overrides += rest
    # Classes of the user's live where the command is given. Last, so that nothing of ours is hidden by it.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    if parsed.command == "doctor":
        from experiments.doctor import print_report

        return print_report()
    if parsed.command == "report":
        return _report(parsed.folder, terminal=parsed.terminal, figures=parsed.figures)
    if parsed.command == "compare":
        return _compare(parsed)
    if parsed.command == "quantize":
        return _quantize(parsed.folder, parsed.overrides)
    if parsed.command == "lm-eval":
        return _lm_eval(parsed)
    return _sweep(parsed.overrides, command=parsed.command, dry_run=parsed.dry_run)


def _sweep(overrides: Sequence[str], *, command: str, dry_run: bool) -> int:
    from rich.console import Console

    from experiments.errors import CommandError, ResultsError
    from experiments.plan import plan_sweep

    # What is assumed of a file or pipe, which has no width of its own.
    console = Console() if sys.stdout.isatty() else Console(width=160)
    single = command == "run"
    try:
        if command == "search":
            return _search(overrides, console, dry_run=dry_run)
        if command == "capacity":
            return _capacity(overrides, console, dry_run=dry_run)
        plan = plan_sweep(overrides, default_experiment=None if single else "quickstart", single=single)
        if dry_run:
            for job in plan.jobs:
                note = job.invalid or ("" if job.needed else "(if it is needed)")
                console.print(f"{job.run_id} {job.label} {note}".rstrip(), highlight=False, markup=False)
            return EXIT_OK
        return _run(plan, console, again=single)
    except CommandError as error:
        print(f"minivllm: {error}", file=sys.stderr)
        return EXIT_USAGE
    except ResultsError as error:
        print(f"minivllm: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("minivllm: interrupted; finished points are kept, the same command goes on from here", file=sys.stderr)
        return EXIT_INTERRUPTED


def _quantize(folder: str, overrides: Sequence[str]) -> int:
    from experiments.errors import CommandError
    from experiments.quantize import quantize

    try:
        print(quantize(folder, overrides))
    except CommandError as error:
        print(f"minivllm: {error}", file=sys.stderr)
        return EXIT_USAGE
    except OSError as error:
        print(f"minivllm: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_OK


def _run(plan: SweepPlan, console: Console, *, again: bool) -> int:
    from experiments.sweep import run_sweep

    with _progress(console, plan.name) as progress:
        swept = run_sweep(plan, progress, again=again, report=_reporter(plan.folder, progress, console))
    return _conclude(swept, plan.folder, console)


def _search(overrides: Sequence[str], console: Console, *, dry_run: bool) -> int:
    from experiments.search import plan_search, run_search

    plan = plan_search(overrides, default_experiment="quickstart")
    if dry_run:
        for axis in plan.experiment.axes:
            listed = ", ".join(choice.label.removeprefix(f"{axis.key}=") for choice in axis.choices)
            console.print(f"{axis.key}: {listed}", highlight=False, markup=False, soft_wrap=True)
        console.print(f"{plan.settings.num_trials} trials of {plan.num_points} points", highlight=False)
        return EXIT_OK
    with _progress(console, plan.sweep.name) as progress:
        found = run_search(plan, progress, report=_reporter(plan.sweep.folder, progress, console))
    for line in found.best:
        console.print(f"best    {line}", highlight=False, markup=False, soft_wrap=True)
    return _conclude(found.swept, plan.sweep.folder, console)


def _capacity(overrides: Sequence[str], console: Console, *, dry_run: bool) -> int:
    from experiments.capacity import plan_capacity, run_capacity

    plan = plan_capacity(overrides, default_experiment="capacity")
    if dry_run:
        for point in plan.points:
            console.print(point.label or plan.sweep.name, highlight=False, markup=False, soft_wrap=True)
        settings = plan.settings
        console.print(
            f"{len(plan.points)} points; {settings.rate_key} begins at {settings.start_rate_rps:g}, and at least "
            f"{settings.target_attainment:.4g} of the requests must meet the limits",
            highlight=False,
        )
        return EXIT_OK
    with _progress(console, plan.sweep.name) as progress:
        found = run_capacity(plan, progress, report=_reporter(plan.sweep.folder, progress, console))
    for line in found.lines:
        console.print(f"capacity {line}", highlight=False, markup=False, soft_wrap=True)
    return _conclude(found.swept, plan.sweep.folder, console)


@contextmanager
def _progress(console: Console, name: str) -> Iterator[Progress]:
    from experiments.progress import Progress

    progress = Progress(console, name)
    try:
        yield progress
    finally:
        progress.stop()


def _reporter(folder: Path, progress: Progress, console: Console) -> Callable[[], None]:
    def report() -> None:
        # The only place where the harness meets the analysis, and only through the folder.
        from analysis.report import write_report
        from experiments.errors import ResultsError, one_line

        progress.stop()
        try:
            write_report(folder, console)
        except ValueError as error:
            raise ResultsError(one_line(error)) from error

    return report


def _conclude(swept: Swept, folder: Path, console: Console) -> int:
    from experiments.summary import overhead_line

    line = overhead_line(swept.rows, swept.tracking_s)
    if line:
        console.print(line, style="dim", highlight=False)
    console.print(f"tables  {folder}", highlight=False, markup=False, soft_wrap=True)
    return EXIT_OK if all(row["status"] == "ok" for row in swept.rows) else EXIT_FAILED


def _report(folder: str, *, terminal: bool, figures: str | None) -> int:
    from analysis.report import write_report
    from analysis.terminal import print_report

    if terminal and figures is not None:
        print("minivllm: --figures: writes files, and --terminal writes none; choose one", file=sys.stderr)
        return EXIT_USAGE
    try:
        if terminal:
            print_report(folder)
        else:
            write_report(folder, figures=figures)
    except (ValueError, OSError) as error:
        print(f"minivllm: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_USAGE
    return EXIT_OK


def _compare(parsed: argparse.Namespace) -> int:
    from analysis.comparison_table import write_comparison

    try:
        write_comparison(
            parsed.folder,
            parsed.other,
            baseline=parsed.baseline,
            metric=parsed.metric,
            within=parsed.within,
            equal_within=parsed.equal_within / 100,
        )
    except (ValueError, OSError) as error:
        print(f"minivllm: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_USAGE
    return EXIT_OK


def _lm_eval(parsed: argparse.Namespace) -> int:
    import importlib.util

    if importlib.util.find_spec("lm_eval") is None:
        print("minivllm: lm-eval: is not installed; pip install 'minivllm[lm_eval]'", file=sys.stderr)
        return EXIT_USAGE
    from experiments.errors import one_line
    from experiments.lm_eval_model import evaluate_tasks, print_results
    from experiments.plan import plan_sweep
    from experiments.points import freeze
    from minivllm.llm import LLM

    try:
        (job,) = plan_sweep(parsed.overrides, single=True).jobs
        results = evaluate_tasks(
            LLM.from_config(freeze(job.config).engine),
            parsed.tasks.split(","),
            include=parsed.include,
            limit=parsed.limit,
            num_fewshot=parsed.num_fewshot,
        )
    except ValueError as error:
        print(f"minivllm: {one_line(error)}", file=sys.stderr)
        return EXIT_USAGE
    print_results(results)
    return EXIT_OK
