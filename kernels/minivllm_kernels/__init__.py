"""One folder an operation: `reference.py` says what it means, in PyTorch and slowly; `cpu.py` how a CPU does it,
compiled by numba; `kernel.py` how a GPU does it, in Triton.

A reference is a definition, not a fallback: it computes in float64, loops where loops are plain, and the tests hold
every fast implementation (the engine's torch backends and the kernels) to it. Triton is imported in `kernel.py` only,
numba in `cpu.py` and in what the CPU kernels share: `cpu_threads` (how they are launched), `cpu_tiles`, `cpu_vectors`
and `cpu_ir` (their inner loops), `cpu_panels` (how weights lie).
"""
