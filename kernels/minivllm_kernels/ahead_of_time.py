"""Compile Triton kernels for a GPU without one, and read what the compiler made of them.

Each `<op>/kernel.py` lists its specialisations: the kernel with the types, constants and options that the engine
launches it with. Written by hand they drift from the launch, so `launches_of` records them from the launch function
itself, called with tensors that have no memory (`device="meta"`).

`scripts/compile_kernels` prints them all; the tests hold them to their budgets. This module imports Triton, as
kernel.py does, and wants it compiling: with TRITON_INTERPRET=1 there is nothing to compile.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

# Ampere (A100) and Hopper (H100, H200), and the shared memory that a program can ask for there.
ARCHITECTURES = (80, 90)
MAX_SHARED_BYTES = {80: 166_912, 90: 232_448}
_INTERPRETS = "TRITON_INTERPRET is set: Triton interprets, and compiles nothing"


@dataclass(frozen=True, kw_only=True, slots=True)
class Specialisation:
    """One kernel as it is launched.

    Args:
        name: `<op>-<what is special>`, unique, such as `paged_decode-fp16-D128-G2-B16`.
        kernel: the `@triton.jit` function.
        types: type of each argument that is no constant, in Triton's words (`*fp16`, `i32`, `fp32`), by name.
        constants: the `tl.constexpr` arguments, and arguments that are None.
        aligned: names of pointers and integers that are multiples of 16, as Triton finds out at a launch.
        num_warps, num_stages: as at the launch.
        max_spill_bytes: what a thread may keep outside of registers, its budget.
        wgmma: whether the sm_90 code must multiply with Hopper's own instruction.
        architectures: those that it is written for.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    aligned: tuple[str, ...] = ()
    num_warps: int = 4
    num_stages: int = 3
    max_spill_bytes: int = 0
    wgmma: bool = False
    architectures: tuple[int, ...] = ARCHITECTURES


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiled:
    """What came out. `registers` and `spill_bytes` are of a thread, `shared_bytes` of a program."""

    name: str
    architecture: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    num_wgmma: int
    ptx: str
    triton: str


def launches_of(
    name: str,
    launch: Callable[..., object],
    *args: Any,
    max_spill_bytes: int = 0,
    wgmma: bool = False,
    architectures: tuple[int, ...] = ARCHITECTURES,
    **kwargs: Any,
) -> list[Specialisation]:
    """What a function launches, without launching it: each kernel's arguments as Triton itself sorts them.

    Args:
        name: of the specialisation; where several kernels are launched, each one's own name is appended.
        launch: called with args and kwargs, whose tensors are on `meta`.
        max_spill_bytes, wgmma, architectures: as in `Specialisation`, for every kernel launched.
    """
    assert not triton.knobs.runtime.interpret, _INTERPRETS
    seen: list[tuple[Any, dict[str, Any], list[tuple[str, Any]], dict[str, Any]]] = []

    backend = make_backend(GPUTarget("cuda", 90, 32))

    def record(self: Any, *args: Any, grid: object, warmup: bool, **kwargs: Any) -> None:
        bind = create_function_from_signature(self.signature, self.params, backend)
        arguments, kinds, options = bind(*args, **kwargs)
        seen.append((self, arguments, kinds, options))

    run = triton.JITFunction.run
    triton.JITFunction.run = record
    try:
        launch(*args, **kwargs)
    finally:
        triton.JITFunction.run = run
    assert seen, f"{name} launched nothing"
    found = []
    for kernel, arguments, kinds, options in seen:
        of = dict(zip(arguments, kinds, strict=True))
        assert set(options) <= {"num_warps", "num_stages"}, f"{name}: {sorted(options)}"
        found.append(
            Specialisation(
                name=name if len(seen) == 1 else f"{name}-{kernel.__name__.strip('_')}",
                kernel=kernel,
                types={key: kind for key, (kind, _) in of.items() if kind != "constexpr"},
                constants={key: arguments[key] for key, (kind, _) in of.items() if kind == "constexpr"},
                # Triton's key of an argument holds a D where 16 divides it.
                aligned=tuple(key for key, (kind, attr) in of.items() if kind != "constexpr" and "D" in (attr or "")),
                max_spill_bytes=max_spill_bytes,
                wgmma=wgmma,
                architectures=architectures,
                **options,
            )
        )
    return found


def kernel_modules() -> list[str]:
    """Every `<op>` that has a kernel.py."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/kernel.py"))


@cache
def all_specialisations() -> dict[str, tuple[str, Specialisation]]:
    """Of all kernels, by name: the operation and the specialisation."""
    found: dict[str, tuple[str, Specialisation]] = {}
    for op in kernel_modules():
        listed: Iterator[Specialisation] = importlib.import_module(f"minivllm_kernels.{op}.kernel").specialisations()
        for one in listed:
            assert one.name not in found, f"{one.name} is listed twice, by {found[one.name][0]} and {op}"
            found[one.name] = (op, one)
    return found


def compile_named(name: str, architecture: int) -> Compiled:
    """What a worker process is asked for: kernels cannot be sent to one."""
    return compile_ahead(all_specialisations()[name][1], architecture)


def broken_budgets(specialisation: Specialisation, compiled: Compiled) -> list[str]:
    """What the compiled kernel does that it must not, in words."""
    broken = []
    if compiled.spill_bytes > specialisation.max_spill_bytes:
        broken.append(f"spills {compiled.spill_bytes} bytes, {specialisation.max_spill_bytes} allowed")
    if compiled.shared_bytes > (limit := MAX_SHARED_BYTES[compiled.architecture]):
        broken.append(f"wants {compiled.shared_bytes} bytes of shared memory, of {limit}")
    if specialisation.wgmma and compiled.architecture == 90 and not compiled.num_wgmma:
        broken.append("has no wgmma")
    return broken


def compile_ahead(specialisation: Specialisation, architecture: int) -> Compiled:
    """Compile for one architecture (80, 90).

    Raises:
        AssertionError: arguments are missing, or Triton interprets.
    """
    kernel = specialisation.kernel
    assert isinstance(kernel, triton.JITFunction), _INTERPRETS
    names = kernel.arg_names
    given = {**specialisation.types, **specialisation.constants}
    assert set(given) == set(names), f"{specialisation.name}: {sorted(set(given) ^ set(names))} missing or unknown"
    compiled = triton.compile(
        ASTSource(
            fn=kernel,
            signature={name: specialisation.types.get(name, "constexpr") for name in names},
            constexprs={(names.index(name),): value for name, value in specialisation.constants.items()},
            attrs={(names.index(name),): [["tt.divisibility", 16]] for name in specialisation.aligned},
        ),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": specialisation.num_warps, "num_stages": specialisation.num_stages},
    )
    usage = _resources(compiled.asm["cubin"])
    return Compiled(
        name=specialisation.name,
        architecture=architecture,
        registers=usage["REG"],
        spill_bytes=usage["STACK"],
        shared_bytes=compiled.metadata.shared,
        num_wgmma=len(re.findall(r"^\s*wgmma\.mma_async", compiled.asm["ptx"], re.MULTILINE)),
        ptx=compiled.asm["ptx"],
        triton=triton.__version__,
    )


def _resources(cubin: bytes) -> dict[str, int]:
    """Registers and stack of the one function in a cubin, from the cuobjdump that Triton carries."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        printed = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {key: int(value) for key, value in re.findall(r"\b(REG|STACK):(\d+)", printed)}
