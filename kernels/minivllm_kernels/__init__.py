"""One folder an operation: `reference.py` says what it means, in PyTorch and slowly; `kernel.py` how a GPU does it.

A reference is a definition, not a fallback: it computes in float64, loops where loops are plain, and the tests hold
every fast implementation (the engine's torch backends and the Triton kernels) to it. Triton is imported in `kernel.py`
only.
"""
