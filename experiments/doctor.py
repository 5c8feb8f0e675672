"""`minivllm doctor`: what this machine can run, and why not."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments import environment
from experiments.compose import CONF
from experiments.meters import open_meters
from experiments.points import ASSETS

_GIB = 2**30
# (extra, package, what it is for)
_EXTRAS = (
    ("joblib", "joblib", "launcher=joblib: several runs at a time on this machine"),
    ("submitit", "submitit", "launcher=submitit: runs as jobs of Slurm"),
    ("ray", "ray", "launcher=ray: runs as tasks of a Ray cluster"),
    ("bitsandbytes", "bitsandbytes", "quantization=nf4, quantization=llm_int8"),
    ("search", "optuna", "minivllm search: some points of a sweep, each chosen by what the others gave"),
    ("lm_eval", "lm-eval", "minivllm lm-eval: the tasks of lm-evaluation-harness, on our engine"),
    ("gpu", "nvidia-ml-py", "energy, clock and temperature of a GPU"),
    ("gpu", "triton", "our GPU kernels; TRITON_INTERPRET=1 runs them on a CPU, in float32 and float16"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Whether one part works here, and why or why not."""

    what: str
    works: bool
    detail: str
    # Whether the main job needs it.
    needed: bool = False


def findings() -> Iterator[Finding]:
    """Look at everything that some part of the project wants."""
    here = sys.version_info
    yield Finding(
        what="python",
        works=(3, 10) <= here[:2] <= (3, 13),
        detail=f"{platform.python_version()} (3.10 to 3.13 are supported)",
        needed=True,
    )
    for package in ("torch", "transformers", "safetensors", "pyarrow", "hydra-core"):
        found = environment.version(package)
        yield Finding(what=package, works=found is not None, detail=found or f"pip install {package}", needed=True)
    yield from _gpu()
    yield _cpu_kernels()
    wandb = environment.version("wandb")
    yield Finding(
        what="wandb",
        works=wandb is not None,
        detail=f"{wandb}, offline by default" if wandb else "choose tracking=none",
    )
    yield from _extras()
    yield _memory()
    yield _threads()
    meter = open_meters("cpu").energy
    yield Finding(what="energy of the CPU", works=bool(meter.counters), detail=meter.source.removeprefix("none: "))
    yield Finding(
        what="conf",
        works=CONF.is_dir(),
        detail="found" if CONF.is_dir() else "pip install -e . from a checkout",
        needed=True,
    )
    for model in ("reference-target", "reference-draft"):
        there = (ASSETS / model / "config.json").is_file()
        detail = "shipped" if there else f"experiments/assets/{model} is missing; model=hf works"
        yield Finding(what=model, works=there, detail=detail, needed=model == "reference-target")
    free = shutil.disk_usage(Path.cwd()).free / _GIB
    yield Finding(what="disk", works=free > 0.1, detail=f"{free:.1f} GiB free in the current folder")


def _extras() -> Iterator[Finding]:
    """What is not in the default install: what each package would allow, and its version or how to get it."""
    for extra, package, allows in _EXTRAS:
        found = environment.version(package)
        detail = f"{found}; {allows}" if found else f"pip install 'minivllm[{extra}]' allows {allows}"
        if package == "submitit" and found and shutil.which("sbatch") is None:
            detail += " (no sbatch here: launcher.executor=local only)"
        yield Finding(what=package, works=found is not None, detail=detail)


def _gpu() -> Iterator[Finding]:
    """Asked in a process of its own: a broken driver may take it down."""
    if environment.version("torch") is None:
        yield Finding(what="CUDA", works=False, detail="needs torch")
        return
    code = (
        "import torch\n"
        "if not torch.backends.cuda.is_built(): print('n this torch is built without CUDA')\n"
        "elif not torch.cuda.is_available(): print('n torch sees no GPU')\n"
        "else:\n"
        "    p = torch.cuda.get_device_properties(0)\n"
        "    print(f'y {p.name}, {p.total_memory / 2**30:.0f} GiB, sm_{p.major}{p.minor}, CUDA {torch.version.cuda}')\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    last = lines[-1] if lines else f"torch left with exit code {done.returncode}"
    works = done.returncode == 0 and last.startswith("y ")
    yield Finding(
        what="CUDA",
        works=works,
        detail=(last[2:] if done.returncode == 0 else last) + ("" if works else "; execution=cpu works"),
    )


def _cpu_kernels() -> Finding:
    """Asked in a process of its own, since it compiles."""
    code = "from minivllm_kernels import cpu_threads as c; print(c.num_threads())"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        missing = environment.version("numba") is None
        why = "pip install numba" if missing else (done.stderr.strip().splitlines() or ["they do not load"])[-1]
        return Finding(what="CPU kernels", works=False, detail=f"{why}; execution.kernels=torch works")
    threads = done.stdout.strip()
    detail = f"numba {environment.version('numba')}, {threads} thread{'s' if threads != '1' else ''} of torch's pool"
    return Finding(what="CPU kernels", works=True, detail=detail)


def _memory() -> Finding:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / _GIB
    return Finding(what="memory", works=total >= 2, detail=f"{total:.1f} GiB in all; the main job needs about 1")


def _threads() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0]
    busy = f"; busy (load {load:.1f}): times will be wrong" if load > usable / 2 else f"; load {load:.1f}"
    return Finding(what="cores", works=load <= usable / 2, detail=f"{usable} usable of {environment.cpu_name()}{busy}")


def print_report() -> int:
    """Print the findings; returns 0 where the main job can run."""
    table = Table(show_edge=False, pad_edge=False)
    for column in ("part", "", "what was found"):
        table.add_column(column)
    found = list(findings())
    for finding in found:
        mark = "[green]yes[/]" if finding.works else "[red]no[/]" if finding.needed else "[yellow]no[/]"
        # The name of an extra stands in brackets, as markup does.
        table.add_row(finding.what, mark, escape(finding.detail))
    Console().print(table)
    return 0 if all(f.works for f in found if f.needed) else 1
