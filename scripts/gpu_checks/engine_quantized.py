"""The engine in steady decode with weights in fewer bits, head included: the same steps as in `engine`, against the
bytes that are left to read."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from gpu_checks.check import Check, Piece
from gpu_checks.engine import measure, release
from gpu_checks.models import SHAPES, make_llm, num_parameters

from minivllm.config import QuantizationConfig

_MODEL = "Qwen3-8B"
_CONTEXT = 1024
_POOL_BYTES = 8 * 2**30
_SCHEMES = {
    "int4 g128": QuantizationConfig.named("int4", skip=(), group_size=128),
    "int8_weight_only": QuantizationConfig.named("int8_weight_only", skip=()),
    "int8_dynamic": QuantizationConfig.named("int8_dynamic", skip=()),
    "fp8": QuantizationConfig.named("fp8", skip=()),
}
# Output tokens a second.
_AIMS = {("int4 g128", 1): 500.0}


def pieces(check: Check) -> Iterator[Piece]:
    # The interpreter has no 8-bit floats to multiply, and knows shapes of a few dozen inputs.
    schemes = {"int8_weight_only": _SCHEMES["int8_weight_only"]} if check.tiny else _SCHEMES
    for name, config in schemes.items():
        yield f"engine {_MODEL} in {name}", partial(_steady, check, name, config)


def _steady(check: Check, name: str, config: QuantizationConfig) -> None:
    llm = make_llm(check, _MODEL, memory_bytes=_POOL_BYTES, quantization=config)
    precision = llm.engine.memory().precision
    assert precision is not None
    # All that a step reads of weights but the norms: the embedding gives a row a token.
    weights_bytes = precision.num_bytes
    kv_bytes = 2 * num_parameters(SHAPES[_MODEL])[1]
    for batch in (1,) if check.tiny else (1, 32):
        found = measure(check, llm, batch, num_steps=100)
        compiled = found.num_compilations
        check.holds(f"engine compilations: {_MODEL} in {name}, batch {batch}", compiled == 0, f"{compiled}")
        floor_ms = check.bytes_ms(weights_bytes + batch * _CONTEXT * kv_bytes)
        check.figure(
            f"engine {_MODEL} in {name}: batch {batch}, context 1k", batch / found.step_s, "tok/s",
            floor=None if floor_ms is None else 1e3 * batch / floor_ms, aim=_AIMS.get((name, batch)),
            detail=f"{found.words}; weights without the embedding {weights_bytes / 1e9:.2f} GB",
        )  # fmt: skip
    del llm
    release()
