"""Our own formats, for traces of one's own.

CSV, a header and one request a line, columns in any order:

| column | |
| --- | --- |
| `arrival_s` | when it came, in seconds on any clock; lines are in its order |
| `num_prompt_tokens`, `num_output_tokens` | lengths |
| `client_id`, `priority` | optional whole numbers, 0 where left out; a lower priority is more urgent |
| `session` | optional name of the conversation that it is a turn of |

JSONL, one object a request: the same keys, and optionally `hash_ids` (names of the prompt's blocks from its beginning,
as Mooncake has them), or instead of `num_prompt_tokens` the prompt itself: `prompt` (text) or `prompt_token_ids`.

An unknown column is an error: a misspelt `priority` would else be no priority.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from experiments.workloads.traces.base import (
    TraceRow,
    csv_columns,
    csv_rows,
    json_object,
    json_rows,
    seconds,
    several,
    whole,
    wrong,
)

_NEEDED = ("arrival_s", "num_output_tokens")
_LENGTH = "num_prompt_tokens"
_OPTIONAL = ("client_id", "priority", "session")
_IN_JSON = (*_NEEDED, _LENGTH, "prompt", "prompt_token_ids", "hash_ids", *_OPTIONAL)


class PlainCsv:
    """Lengths alone."""

    def recognizes(self, first_line: str) -> bool:
        return csv_columns(first_line) >= {*_NEEDED, _LENGTH}

    def read(self, path: str) -> Iterator[TraceRow]:
        for line, cells in csv_rows(path, (*_NEEDED, _LENGTH), _OPTIONAL, others=False):
            given = {name: cell for name, cell in cells.items() if cell.strip() or name in (*_NEEDED, _LENGTH)}
            length = whole(cells[_LENGTH], path, line, _LENGTH)
            yield TraceRow(num_prompt_tokens=length, **_shared(given, path, line))


class PlainJsonl:
    """Lengths, block names, or prompts."""

    def recognizes(self, first_line: str) -> bool:
        return (json_object(first_line) or {}).keys() >= set(_NEEDED)

    def read(self, path: str) -> Iterator[TraceRow]:
        for line, entry in json_rows(path):
            for key in entry:
                if key not in _IN_JSON:
                    raise wrong(path, line, "key", key, f"one of {', '.join(_IN_JSON)}")
            given = {key: value for key, value in entry.items() if value is not None}
            yield TraceRow(**_prompt(given, path, line), **_shared(given, path, line))


def _shared(given: Mapping[str, Any], path: str, line: int) -> dict[str, Any]:
    """What both formats have."""
    session = given.get("session")
    if session is not None and not isinstance(session, str):
        raise wrong(path, line, "session", session, "text")
    return {
        "line": line,
        "arrival_s": seconds(given.get("arrival_s"), path, line, "arrival_s"),
        "num_output_tokens": whole(given.get("num_output_tokens"), path, line, "num_output_tokens"),
        "client_id": whole(given.get("client_id", 0), path, line, "client_id"),
        "priority": whole(given.get("priority", 0), path, line, "priority", least=None),
        "session": session,
    }


def _prompt(given: Mapping[str, Any], path: str, line: int) -> dict[str, Any]:
    """The prompt, in one of its three forms."""
    forms = [key for key in (_LENGTH, "prompt", "prompt_token_ids") if key in given]
    if len(forms) != 1:
        raise wrong(path, line, "keys", forms, f"one of {_LENGTH}, prompt, prompt_token_ids")
    ids = given.get("hash_ids")
    if ids is not None and forms != [_LENGTH]:
        raise wrong(path, line, "hash_ids", ids, f"beside {_LENGTH}; where the prompt is given it says what it shares")
    if "prompt" in given:
        if not isinstance(given["prompt"], str) or not given["prompt"]:
            raise wrong(path, line, "prompt", given["prompt"], "text")
        return {"num_prompt_tokens": None, "prompt": given["prompt"]}
    if "prompt_token_ids" in given:
        tokens = several(given["prompt_token_ids"], path, line, "prompt_token_ids")
        return {"num_prompt_tokens": len(tokens), "prompt_token_ids": tokens}
    hashes = None if ids is None else several(ids, path, line, "hash_ids")
    return {"num_prompt_tokens": whole(given[_LENGTH], path, line, _LENGTH), "hash_ids": hashes}
