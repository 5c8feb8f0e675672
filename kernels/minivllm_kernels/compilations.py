"""How often Triton had to make a kernel ready (compile it, or read it from its cache) because no launch before had the
same types, constants and alignment. While requests are measured, that must not happen.

It counts by Triton's own hook, from the first import of this module on. The interpreter compiles nothing.
"""

from __future__ import annotations

from typing import Any

from triton import knobs

_count = 0
_before = knobs.runtime.jit_post_compile_hook


def _hook(*args: Any, **kwargs: Any) -> Any:
    global _count
    _count += 1
    return _before(*args, **kwargs) if _before is not None else None


knobs.runtime.jit_post_compile_hook = _hook


def num_compilations() -> int:
    """Kernels made ready so far in this process."""
    return _count
