"""Mooncake: an hour of Kimi's requests, with the names of the prompts' blocks, so that what prompts share is known.

JSONL: {"timestamp": milliseconds, "input_length": tokens, "output_length": tokens, "hash_ids": [...]}. A block is 512
tokens; its id stands for it and all before it, so two prompts share exactly the blocks whose ids agree from the start.

Source: github.com/kvcache-ai/Mooncake, FAST25-release/traces (arXiv 2407.00079, section 4); Apache 2.0.
"""

from __future__ import annotations

from collections.abc import Iterator

from experiments.workloads.traces.base import TraceRow, json_object, json_rows, seconds, several, whole

_KEYS = ("timestamp", "input_length", "output_length")


class Mooncake:
    """Also without `hash_ids`, as other tools write the format."""

    def recognizes(self, first_line: str) -> bool:
        return (json_object(first_line) or {}).keys() >= set(_KEYS)

    def read(self, path: str) -> Iterator[TraceRow]:
        for line, entry in json_rows(path):
            ids = entry.get("hash_ids")
            yield TraceRow(
                line=line,
                arrival_s=seconds(entry.get("timestamp"), path, line, "timestamp") / 1e3,
                num_prompt_tokens=whole(entry.get("input_length"), path, line, "input_length"),
                num_output_tokens=whole(entry.get("output_length"), path, line, "output_length"),
                hash_ids=None if ids is None else several(ids, path, line, "hash_ids"),
            )
