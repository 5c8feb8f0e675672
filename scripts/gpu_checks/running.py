"""Sections as processes: started, watched, ended when their time is up, begun again behind a piece that broke one."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from gpu_checks import results
from gpu_checks.check import STEP_OVER, Check, Peaks, progress_file, run_pieces
from gpu_checks.results import Row
from gpu_checks.sections import PHASES, SECTIONS

_MOST_RESTARTS = 6
_HANGS = "hangs"


def run_all(script: Path, options: argparse.Namespace, names: list[str]) -> Iterator[str]:
    """Run sections by phase; yields when there is something new to write."""
    deadline = time.monotonic() + options.budget_s
    for phase in PHASES:
        of_phase = [name for name in names if SECTIONS[name].phase == phase]
        # Checks side by side, the others one after the other.
        for group in [of_phase] if phase == "checks" else [[name] for name in of_phase]:
            if options.tiny:
                for name in group:
                    _run_here(options, name)
            elif group:
                _watch(script, options, group, deadline)
            yield phase


def run_child(options: argparse.Namespace) -> None:
    """One shard of one section, in this process."""
    # What is said before a process is lost must be in the log.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    shard, num_shards = map(int, options.shard.split("/"))
    section = importlib.import_module(f"gpu_checks.{SECTIONS[options.child].module}")
    run_pieces(section, _make_check(options, options.child), shard=shard, num_shards=num_shards, first=options.first)


def _run_here(options: argparse.Namespace, name: str) -> None:
    check = _make_check(options, name, loud=True)
    try:
        section = importlib.import_module(f"gpu_checks.{SECTIONS[name].module}")
    except ImportError as error:
        check.add(f"{name}: did not start", ok=False, detail=str(error))
        return
    run_pieces(section, check, shard=0, num_shards=1, first=0)


def _make_check(options: argparse.Namespace, name: str, loud: bool = False) -> Check:
    failed = _failed_subjects(options.out)
    wrong = "engine tokens" in failed and SECTIONS[name].of_engine
    return Check(
        section=name,
        out=options.out,
        device=torch.device(options.device),
        tiny=options.tiny,
        peaks=Peaks.load(options.out / "peaks.json"),
        failed=failed,
        caveat="the engine's tokens are wrong (see the failed checks); " if wrong else "",
        heard=(lambda row: print(row.text(), flush=True)) if loud else (lambda row: None),
    )


def _failed_subjects(out: Path) -> frozenset[str]:
    return frozenset(row.subject for row in results.read(out / "rows.jsonl") if row.ok is False)


@dataclass(kw_only=True, slots=True)
class _Running:
    name: str
    shard: int
    process: subprocess.Popen[bytes]
    ends_s: float
    num_restarts: int = 0


def _watch(script: Path, options: argparse.Namespace, names: list[str], deadline: float) -> None:
    """Run these sections' shards side by side until all are done or out of time."""
    rows_file, heard = options.out / "rows.jsonl", len(results.read(options.out / "rows.jsonl"))
    with (options.out / "log.txt").open("ab") as log:
        running = []
        for name in names:
            for shard in range(SECTIONS[name].shards):
                now_s = time.monotonic()
                if now_s + 5 > deadline:
                    _note(rows_file, name, f"{name}: not run", "no time is left: raise --budget-s, or choose by --only")
                    continue
                process = _start(script, options, name, shard, 0, log)
                ends_s = min(deadline, now_s + SECTIONS[name].budget_s)
                running.append(_Running(name=name, shard=shard, process=process, ends_s=ends_s))
        try:
            while running:
                time.sleep(0.2)
                running = [one for one in running if _goes_on(script, options, one, rows_file, log)]
                rows = results.read(rows_file)
                for row in rows[heard:]:
                    print(row.text(), flush=True)
                heard = len(rows)
        finally:
            for one in running:
                _end(one)


def _start(
    script: Path, options: argparse.Namespace, name: str, shard: int, first: int, log: IO[bytes]
) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(script), "--child", name, "--shard", f"{shard}/{SECTIONS[name].shards}"]
    command += ["--first", str(first), "--device", options.device, "--out", str(options.out)]
    # Processes that run side by side share the cores.
    checks = SECTIONS[name].phase == "checks"
    side_by_side = sum(plan.shards for plan in SECTIONS.values() if plan.phase == "checks") if checks else 1
    environment = {"OMP_NUM_THREADS": str(max(2, (os.cpu_count() or 1) // side_by_side))} | dict(os.environ)
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def _goes_on(script: Path, options: argparse.Namespace, one: _Running, rows_file: Path, log: IO[bytes]) -> bool:
    """Look after one process; False when its shard is over."""
    progress = progress_file(options.out, one.name, one.shard)
    status: int | str | None = one.process.poll()
    if status is None and progress.exists() and time.time() - progress.stat().st_mtime > SECTIONS[one.name].piece_s:
        _end(one)
        status = _HANGS
    if status is None:
        if time.monotonic() < one.ends_s:
            return True
        at = json.loads(progress.read_text())["name"] if progress.exists() else "its start"
        _end(one)
        progress.unlink(missing_ok=True)
        _note(rows_file, one.name, f"{one.name}: out of time", f"ended during {at}")
        return False
    if status == 0:
        return False
    if not progress.exists():
        _note(rows_file, one.name, f"{one.name}: did not start", f"exit status {status}: see log.txt")
        return False
    at = json.loads(progress.read_text())
    progress.unlink()
    if status == _HANGS:
        _note(rows_file, one.name, at["name"], f"ended after {SECTIONS[one.name].piece_s:.0f} s: it hangs, or is slow")
    elif status != STEP_OVER:
        _note(rows_file, one.name, at["name"], f"took its process with it, exit status {status}: see log.txt")
    one.num_restarts += 1
    if one.num_restarts > _MOST_RESTARTS:
        _note(rows_file, one.name, f"{one.name}: given up", f"after {_MOST_RESTARTS} broken processes")
        return False
    one.process = _start(script, options, one.name, one.shard, at["number"] + 1, log)
    return True


def _end(one: _Running) -> None:
    if one.process.poll() is None:
        one.process.kill()
        one.process.wait()


def _note(rows_file: Path, section: str, name: str, detail: str) -> None:
    results.append(rows_file, Row(section=section, name=name, ok=False, detail=detail))
