"""Triton decides when a kernel is defined whether to interpret it: on a machine without a GPU, all of them."""

from __future__ import annotations

import os
from pathlib import Path

if not Path("/proc/driver/nvidia/version").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
