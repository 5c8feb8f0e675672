"""What made the figures: versions, and the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch


def of_this_machine(root: Path, device: str) -> dict[str, str]:
    """Names and versions, "" where they cannot be told."""
    gpu = torch.cuda.get_device_name() if device == "cuda" else "interpreter"
    return {
        "gpu": gpu,
        "driver": _driver(),
        "cuda": torch.version.cuda or "",
        "torch": torch.__version__,
        "triton": _package("triton"),
        "transformers": _package("transformers"),
        "python": platform.python_version(),
        "cpus": str(os.cpu_count()),
        "git": _git(root, "rev-parse", "--short", "HEAD") + ("+" if _git(root, "status", "--porcelain") else ""),
    }


def _package(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _driver() -> str:
    file = Path("/proc/driver/nvidia/version")
    words = file.read_text().split() if file.exists() else []
    return next((word for word in words if word.count(".") == 2 and word[0].isdigit()), "")


def _git(root: Path, *arguments: str) -> str:
    try:
        finished = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    except FileNotFoundError:
        return ""
    return finished.stdout.strip() if finished.returncode == 0 else ""
