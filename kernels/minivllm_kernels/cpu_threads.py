"""How a compiled CPU kernel is launched: on every thread of the pool that PyTorch itself computes with.

A second pool of threads (numba's own, say) would fight with PyTorch's for the cores, as idle OpenMP threads spin for
milliseconds before they sleep. So a kernel is a C function that PyTorch's own OpenMP runtime is asked to run, once on
each of its threads, and a launch costs about what `#pragma omp parallel` costs: a microsecond or two.

Where PyTorch brings no such runtime (it exports `GOMP_parallel` on Linux, not on macOS), kernels run on one thread;
`num_threads` tells.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import torch
from numba import cfunc, config, njit, types
from numba.core.types import ExternalFunction
from torch import Tensor

_MAPS = Path("/proc/self/maps")


def _openmp_of_torch() -> ctypes.CDLL | None:
    """The OpenMP runtime that is in this process already because torch links to it."""
    if not _MAPS.exists():
        return None
    paths = re.findall(r"\S*/lib(?:gomp|iomp5|omp)[^/\s]*\.so[.\d]*$", _MAPS.read_text(), flags=re.MULTILINE)
    # Another package may have brought a second runtime; torch's lies in its own folders.
    own = [path for path in dict.fromkeys(paths) if "/torch" in path] or paths
    for path in own:
        library = ctypes.CDLL(path)
        if hasattr(library, "GOMP_parallel") and hasattr(library, "GOMP_barrier"):
            return library
    return None


_OPENMP = _openmp_of_torch()

if _OPENMP is not None:
    _parallel = _OPENMP.GOMP_parallel
    # (function, its argument, threads, flags)
    _parallel.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint)
    _parallel.restype = None
    _thread_num: Any = _OPENMP.omp_get_thread_num
    _barrier: Any = _OPENMP.GOMP_barrier
else:
    _thread_num = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0)
    _barrier = ctypes.CFUNCTYPE(None)(lambda: None)

# By name, not by address, so that compiled kernels can be kept on disk.
llvm.add_symbol("minivllm_thread_num", ctypes.cast(_thread_num, ctypes.c_void_p).value)
llvm.add_symbol("minivllm_barrier", ctypes.cast(_barrier, ctypes.c_void_p).value)

# For use inside of a kernel: the index of this thread, and a wait for all threads of this launch.
thread_num = ExternalFunction("minivllm_thread_num", types.int32())
barrier = ExternalFunction("minivllm_barrier", types.void())

# What a kernel is called with: 64-bit integers, addresses of tensors among them.
_ARGUMENTS = types.CPointer(types.int64)

# Of the parts of a product that are called by `each_tile` and `each_prepared_tile`.
TILE_SIGNATURE = types.void(_ARGUMENTS, *[types.int64] * 6)
PREPARE_SIGNATURE = types.void(_ARGUMENTS, *[types.int64] * 2)


@functools.cache
def _cache_folder() -> Path:
    """Where compiled kernels are kept; where it cannot be written, numba takes a folder of the user's."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for source in sorted(package.rglob("cpu*.py")):
        digest.update(source.read_bytes())
    return package / "__pycache__" / f"numba-{digest.hexdigest()[:12]}"


def num_threads() -> int:
    """Threads that a launch uses: torch's number, or 1 where its pool cannot be reached."""
    return torch.get_num_threads() if _OPENMP is not None else 1


class CpuKernel:
    """A kernel ready to launch. Made by `cpu_kernel`.

    Args:
        function: `(arguments, num_threads)` in numba's language. `arguments` is indexed, each is an int64.
        num_arguments: how many there are.
    """

    def __init__(self, function: Callable[..., None], num_arguments: int) -> None:
        functools.update_wrapper(self, function)
        # numba looks for a change in the kernel's own file only, and most of a kernel may lie in `cpu_vectors`: so code
        # is kept under the digest of all of ours.
        kept_in, config.CACHE_DIR = config.CACHE_DIR, str(_cache_folder())
        try:
            self._compiled = cfunc(types.void(_ARGUMENTS), cache=True, error_model="numpy")(function)
        finally:
            config.CACHE_DIR = kept_in
        self._address = self._compiled.address
        self._serial = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(self._address)
        self._pack = struct.Struct(f"={num_arguments + 1}q").pack

    def __call__(self, *arguments: int) -> None:
        """Run on all threads, return when they are done. The last argument that the kernel sees is their number."""
        threads = num_threads()
        packed = self._pack(*arguments, threads)
        if threads == 1:
            self._serial(packed)
        else:
            _parallel(self._address, packed, threads, 0)


def cpu_kernel(num_arguments: int) -> Callable[[Callable[..., None]], CpuKernel]:
    """Compile a function of one pointer to int64 arguments; argument `num_arguments` is the number of threads."""
    return lambda function: CpuKernel(function, num_arguments)


def address(tensor: Tensor) -> int:
    """Of a tensor that a kernel will read or write as a plain float32 array."""
    assert tensor.is_contiguous() and tensor.dtype is torch.float32, f"{tensor.dtype} strides {tensor.stride()}"
    return int(tensor.data_ptr())


def float_bits(value: float) -> int:
    """A float as a kernel's argument; `f64_of_bits` reads it."""
    return int(struct.unpack("=q", struct.pack("=d", value))[0])


@njit(inline="always", error_model="numpy")
def tiles_of_panel(
    tile: Any, a: Any, scratch: Any, panel: Any, num_panels: Any, num_rows: Any, width: Any, most_rows: Any
) -> None:
    """Call `tile(a, scratch, panel, num_panels, first_row, num_rows, width)` for all rows of a product.

    Tiles are of equal height, rather than a low one at the end.
    """
    num_tiles = (num_rows + most_rows - 1) // most_rows
    for i in range(num_tiles):
        first, end = num_rows * i // num_tiles, num_rows * (i + 1) // num_tiles
        tile(a, scratch, panel, num_panels, first, end - first, width)


@njit(inline="always", error_model="numpy")
def each_tile(
    tile: Any, a: Any, scratch: Any, num_rows: Any, num_outputs: Any, num_threads: Any,
    width: Any, most_rows: Any, most_pair_rows: Any,
) -> None:  # fmt: skip
    """All of this thread's tiles of a product: panels of `width` outputs are shared by the threads, few rows take two
    panels at a time."""
    num_panels = (num_outputs + width - 1) // width
    thread = thread_num()
    panel, end_panel = num_panels * thread // num_threads, num_panels * (thread + 1) // num_threads
    while panel < end_panel:
        left = num_outputs - panel * width
        count = 1
        if num_rows <= most_pair_rows and panel + 1 < end_panel and left >= 2 * width:
            count = 2
        tiles_of_panel(tile, a, scratch, panel, count, num_rows, min(left, count * width), most_rows)
        panel += count


@njit(inline="always", error_model="numpy")
def each_prepared_tile(
    prepare: Any, tile: Any, a: Any, scratch: Any, scratch_size: Any, num_rows: Any, num_outputs: Any,
    num_threads: Any, width: Any, most_rows: Any,
) -> None:  # fmt: skip
    """As `each_tile`, after a call of `prepare(a, scratch, panel)` that leaves a panel in this thread's scratch."""
    num_panels = (num_outputs + width - 1) // width
    thread = thread_num()
    scratch += thread * scratch_size
    for panel in range(num_panels * thread // num_threads, num_panels * (thread + 1) // num_threads):
        prepare(a, scratch, panel)
        tiles_of_panel(tile, a, scratch, panel, 1, num_rows, min(num_outputs - panel * width, width), most_rows)
