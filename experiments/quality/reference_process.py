"""A process of its own for the unquantized model: its weights must not be in the memory of a point, which is measured.

python -m experiments.quality.reference_process       one order as JSON on standard input
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from experiments.errors import one_line
from experiments.quality.evaluation import evaluate
from experiments.quality.identifiers import ANSWER_TOKENS
from experiments.quality.items import make_items
from experiments.quality.reference import is_whole, path_of, write
from experiments.quality.settings import QualityConfig
from minivllm.config import CacheConfig, EngineConfig, ExecutionConfig, ModelConfig
from minivllm.llm import LLM
from minivllm.models.loader import resolve_dtype

_HINT = "quality=off leaves quality out"


class ReferenceFailed(RuntimeError):
    """The unquantized model could not be asked."""


def ensure(folder: Path, engine: EngineConfig, quality: QualityConfig) -> Path:
    """The reference of a point, made in a process of its own where it is not there yet: its weights must not be in the
    memory of the point, which is measured.

    Raises:
        ValueError: the config allows none.
        ReferenceFailed: the process failed or died.
    """
    path = path_of(folder, engine, quality)
    if is_whole(path):
        return path
    order = {
        "model": dataclasses.asdict(engine.model),
        "quality": dataclasses.asdict(quality),
        "device": engine.execution.device,
        "num_threads": engine.execution.num_threads,
        "path": str(path),
    }
    # It sees what this process sees, parts from the user's folder among it.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    command = [sys.executable, "-W", "ignore", "-m", "experiments.quality.reference_process"]
    done = subprocess.run(
        command, input=json.dumps(order), stdout=subprocess.PIPE, text=True, env=environment, check=False
    )
    if done.returncode == 0 and is_whole(path):
        return path
    raise _failure(done.returncode, done.stdout)


def _failure(code: int, said: str) -> Exception:
    what = "quality: the unquantized reference"
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", most likely out of memory" if -code == signal.SIGKILL else ""
        return ReferenceFailed(f"{what} died of signal {-code} ({name}){hint}; {_HINT}")
    try:
        told = json.loads(said.splitlines()[-1])
        kind, message = str(told["type"]), str(told["message"])
    except (IndexError, ValueError, KeyError, TypeError):
        return ReferenceFailed(f"{what} left with exit code {code} and no result; {_HINT}")
    if kind == "ValueError":
        return ValueError(message if message.startswith("quality.") else f"{what}: {message}; {_HINT}")
    return ReferenceFailed(f"{what} failed: {kind}: {message}; {_HINT}")


def main() -> int:
    """Make what an order on standard input asks for; standard output gets a line of JSON where that fails."""
    # Whatever a library prints goes to the log.
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        order = json.loads(sys.stdin.read())
        _make(order)
    # The border of this process: whoever started it makes a row of the reason.
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        kind = "ValueError" if isinstance(error, ValueError) else type(error).__name__
        told.write(json.dumps({"type": kind, "message": one_line(error)}) + "\n")
        told.close()
        return 1
    return 0


def _make(order: Mapping[str, Any]) -> None:
    """Load the model as it is, in default parts, and write what it makes of the items."""
    quality, model = QualityConfig(**order["quality"]), ModelConfig(**order["model"])
    execution = ExecutionConfig(device=order["device"], num_threads=order["num_threads"])
    llm = LLM.from_config(_engine(model, execution, quality))
    items = make_items(quality, llm.tokenizer)
    hidden: list[Tensor] = []
    found = evaluate(
        llm,
        items,
        output_tokens=quality.output_tokens,
        keep_hidden=lambda _, states: hidden.append(states.float().cpu()),
    )
    dtype = resolve_dtype(model, device=execution.device, dtype=execution.dtype)
    write(Path(order["path"]), items, found, hidden, str(dtype).removeprefix("torch."))


def _engine(model: ModelConfig, execution: ExecutionConfig, quality: QualityConfig) -> EngineConfig:
    """Default parts, and no more memory for K/V than the items need."""
    defaults = EngineConfig(model=model)
    size, num_seqs = defaults.cache.block_size, defaults.scheduler.max_num_seqs
    request = max(quality.prompt_tokens + quality.output_tokens, quality.task_context_tokens + ANSWER_TOKENS)
    num_blocks = max(-(-quality.window_tokens // size), num_seqs * -(-request // size))
    return EngineConfig(model=model, execution=execution, cache=CacheConfig(num_blocks=num_blocks))


if __name__ == "__main__":
    sys.exit(main())
