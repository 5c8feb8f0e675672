"""Compile Triton kernels for a GPU without one, and read what the compiler made of them.

Each `<op>/kernel.py` lists its specialisations: the kernel with the types, constants and options that the engine
launches it with. `scripts/compile_kernels` prints them all; the tests hold them to their budgets. This module imports
Triton, as kernel.py does, and wants it compiling: with TRITON_INTERPRET=1 there is nothing to compile.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# Ampere (A100) and Hopper (H100, H200).
ARCHITECTURES = (80, 90)


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


def compile_ahead(specialisation: Specialisation, architecture: int) -> Compiled:
    """Compile for one architecture (80, 90).

    Raises:
        AssertionError: arguments are missing, or Triton interprets.
    """
    kernel = specialisation.kernel
    assert isinstance(kernel, triton.JITFunction), "TRITON_INTERPRET is set: Triton interprets, and compiles nothing"
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
