"""Read the file that `wandb sync` reads: W&B's records in LevelDB's log format.

wandb 0.31 has its reader in a binary, so the framing is read here and the records by its own protobuf messages. A block
is 32 KiB; a chunk has a header of checksum (4 bytes), length (2) and kind (1), and a record is one chunk or several.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_BLOCK, _HEADER, _FULL, _LAST = 32768, 7, 1, 4


@dataclass
class OfflineRun:
    """What an offline run holds."""

    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: list[Any] = field(default_factory=list)
    # Artifact name -> path in it -> size.
    artifacts: dict[str, dict[str, int]] = field(default_factory=dict)
    # Path in the artifact -> where the file waits.
    staged: dict[str, Path] = field(default_factory=dict)
    exit_code: int | None = None


def read_offline_run(path: Path) -> OfflineRun:
    """Read a `run-*.wandb` file."""
    found = OfflineRun()
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
            _update(found.config, record.run.config.update)
        elif kind == "config":
            _update(found.config, record.config.update)
        elif kind == "history":
            row: dict[str, Any] = {}
            _update(row, record.history.item)
            found.history.append(row)
        elif kind == "summary":
            _update(found.summary, record.summary.update)
        elif kind == "metric":
            found.metrics.append(record.metric)
        elif kind == "artifact":
            entries = record.artifact.manifest.contents
            if record.artifact.manifest.manifest_file_path:
                raise AssertionError("a manifest of its own file is not read here")
            found.artifacts[record.artifact.name] = {entry.path: entry.size for entry in entries}
            found.staged |= {entry.path: Path(entry.local_path) for entry in entries}
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def _update(into: dict[str, Any], items: Any) -> None:
    for item in items:
        into[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)


def _records(data: bytes) -> Iterator[bytes]:
    assert data[:4] == b":W&B", "no file of W&B"
    place, parts = _HEADER, []
    while place + _HEADER <= len(data):
        if _BLOCK - place % _BLOCK < _HEADER:
            place += _BLOCK - place % _BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + _HEADER])
        parts.append(data[place + _HEADER : place + _HEADER + length])
        place += _HEADER + length
        if kind in (_FULL, _LAST):
            yield b"".join(parts)
            parts = []
