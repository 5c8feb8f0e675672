"""Where a run ran: the `env.*` columns. No host name, no user, no path."""

from __future__ import annotations

import hmac
import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent


def host() -> dict[str, Any]:
    """What does not change during a sweep, found without importing torch."""
    sha = _output("git", "-C", str(_ROOT), "rev-parse", "HEAD")
    status = _output("git", "-C", str(_ROOT), "status", "--porcelain", "--untracked-files=no") if sha else None
    gpu = _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    name, _, driver = (gpu or "").partition("\n")[0].partition(", ")
    return {
        "env.git_sha": sha,
        "env.git_dirty": None if status is None else bool(status),
        "env.python": platform.python_version(),
        "env.torch": version("torch"),
        "env.triton": version("triton"),
        "env.transformers": version("transformers"),
        "env.platform": f"{platform.system()}-{platform.machine()}",
        "env.cpu": cpu_name(),
        "env.machine": machine(),
        "env.cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "env.gpu": name or None,
        "env.gpu_driver": driver or None,
    }


def moment() -> dict[str, Any]:
    """What changes: the load average of the last minute, which tells whether the run had the machine to itself."""
    return {"env.load_average": load_average()}


def load_average() -> float:
    """Of the last minute."""
    return os.getloadavg()[0]


def version(package: str) -> str | None:
    """Installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine() -> str:
    """Tells machines of equal parts apart, and names none: a digest of the system's own id, or of its name."""
    known = Path("/etc/machine-id")
    own = known.read_text(encoding="utf-8").strip() if known.exists() else ""
    # Keyed, as machine-id(5) asks of whoever shows it to others.
    return hmac.new(b"minivllm", (own or platform.node()).encode(), "sha256").hexdigest()[:8]


def cpu_name() -> str | None:
    """Model name of the processor, or None where the system does not say."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None


def _output(*command: str) -> str | None:
    """Standard output of a short command, or None where it is missing or fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
