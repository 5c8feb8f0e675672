"""Readers of traces: what a file says, row by row; what is wrong with it, in one line; nothing of it kept."""

from __future__ import annotations

import csv
import itertools
import json
import tracemalloc
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.points import ASSETS
from experiments.workloads.traces.azure import nanoseconds
from experiments.workloads.traces.base import TraceRow, seconds
from experiments.workloads.traces.formats import FORMATS, read_trace

SAMPLES = {
    "synthetic_azure_2023.csv": "azure",
    "synthetic_azure_2024.csv": "azure",
    "synthetic_burstgpt_1.csv": "burstgpt",
    "synthetic_burstgpt_3.csv": "burstgpt",
    "synthetic_mooncake.jsonl": "mooncake",
    "synthetic_plain.csv": "csv",
    "synthetic_plain.jsonl": "jsonl",
}
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
MOON = '{"timestamp": 5, "input_length": 6, "output_length": 7, "hash_ids": [1]}\n'
PLAIN = "arrival_s,num_prompt_tokens,num_output_tokens"
OWN = '{"arrival_s": 0, "num_output_tokens": 1, '
COUNTS = st.integers(0, 10**6)
QUICK = settings(max_examples=20, deadline=None)


def _sample(name: str) -> str:
    return str(ASSETS / "traces" / name)


def _write(folder: Path, text: str, name: str = "trace") -> str:
    path = folder / name
    path.write_bytes(text.encode())
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traces")


class Backwards:
    """A reader from outside the house: one line a request, `output prompt arrival`."""

    def recognizes(self, first_line: str) -> bool:
        return False

    def read(self, path: str) -> Iterator[TraceRow]:
        for line, text in enumerate(Path(path).read_text().splitlines(), start=1):
            output, prompt, arrival = text.split()
            arrival_s = seconds(arrival, path, line, "arrival")
            yield TraceRow(line=line, arrival_s=arrival_s, num_prompt_tokens=int(prompt), num_output_tokens=int(output))


@pytest.mark.parametrize(("name", "format"), SAMPLES.items(), ids=list(SAMPLES))
def test_every_shipped_file_is_recognized_by_its_reader_alone(name: str, format: str) -> None:
    first = Path(_sample(name)).read_text().splitlines()[0]
    assert [member for member, reader in FORMATS.items() if reader.recognizes(first)] == [format]
    assert list(read_trace(_sample(name))) == list(read_trace(_sample(name), format))


@pytest.mark.parametrize("year", [2023, 2024])
def test_azures_rows_are_what_pandas_reads(year: int) -> None:
    path = _sample(f"synthetic_azure_{year}.csv")
    rows, frame = list(read_trace(path)), pd.read_csv(path)
    times = pd.to_datetime(frame["TIMESTAMP"], format="ISO8601", utc=True)
    assert [row.arrival_s for row in rows] == ((times - times[0]).dt.total_seconds()).round(9).tolist()
    assert [row.num_prompt_tokens for row in rows] == frame["ContextTokens"].tolist()
    assert [row.num_output_tokens for row in rows] == frame["GeneratedTokens"].tolist()
    assert [row.line for row in rows] == list(range(2, len(frame) + 2))


@pytest.mark.parametrize("release", [1, 3])
def test_burstgpts_rows_are_what_pandas_reads(release: int) -> None:
    path = _sample(f"synthetic_burstgpt_{release}.csv")
    rows, frame = list(read_trace(path)), pd.read_csv(path)
    assert [row.arrival_s for row in rows] == frame["Timestamp"].tolist()
    assert [row.num_prompt_tokens for row in rows] == frame["Request tokens"].tolist()
    assert [row.num_output_tokens for row in rows] == frame["Response tokens"].tolist()
    assert 0 in frame["Response tokens"].tolist()
    sessions = [None] * len(frame) if release == 1 else [s if isinstance(s, str) else None for s in frame["Session ID"]]
    assert [row.session for row in rows] == sessions
    assert (set(sessions) == {None}) == (release == 1)


def test_mooncakes_rows_are_the_objects_of_its_lines() -> None:
    path = _sample("synthetic_mooncake.jsonl")
    entries = [json.loads(line) for line in Path(path).read_text().splitlines()]
    rows = list(read_trace(path))
    assert [row.arrival_s for row in rows] == [entry["timestamp"] / 1000 for entry in entries]
    assert [(row.num_prompt_tokens, row.num_output_tokens, list(row.hash_ids or ())) for row in rows] == [
        (entry["input_length"], entry["output_length"], entry["hash_ids"]) for entry in entries
    ]
    assert all(-(-entry["input_length"] // 512) == len(entry["hash_ids"]) for entry in entries)


def test_our_own_rows_are_the_lines_of_their_files() -> None:
    with open(_sample("synthetic_plain.csv"), newline="") as file:
        cells = list(csv.DictReader(file))
    rows = list(read_trace(_sample("synthetic_plain.csv")))
    names = ("arrival_s", "num_prompt_tokens", "num_output_tokens", "client_id", "priority", "session")
    assert [[getattr(row, name) for name in names] for row in rows] == [
        [float(c["arrival_s"]), *(int(c[name]) for name in names[1:5]), c["session"] or None] for c in cells
    ]
    entries = [json.loads(line) for line in Path(_sample("synthetic_plain.jsonl")).read_text().splitlines()]
    rows = list(read_trace(_sample("synthetic_plain.jsonl")))
    assert [(row.arrival_s, row.num_output_tokens, row.client_id, row.priority, row.session) for row in rows] == [
        (e["arrival_s"], e["num_output_tokens"], e.get("client_id", 0), e.get("priority", 0), e.get("session"))
        for e in entries
    ]
    assert [row.num_prompt_tokens for row in rows] == [600, 640, 5, None, 33]
    assert [row.hash_ids for row in rows] == [(7, 8), (7,), None, None, None]
    assert rows[2].prompt_token_ids == (5, 17, 17, 3, 40)
    assert rows[3].prompt == entries[3]["prompt"]


_GAPS = st.lists(st.tuples(st.integers(0, 10**11), COUNTS, COUNTS), min_size=1, max_size=9)


@QUICK
@given(gaps=_GAPS, digits=st.sampled_from([0, 3, 6, 7, 9]), offset=st.integers(-14 * 60, 14 * 60), crlf=st.booleans())
def test_azure_rows_come_back_as_they_were_written(
    folder: Path, gaps: list[tuple[int, int, int]], digits: int, offset: int, crlf: bool
) -> None:
    unit = 10 ** (9 - digits)
    starts = [at // unit * unit for at in itertools.accumulate(gap for gap, _, _ in gaps)]
    end = "\r\n" if crlf else "\n"
    zone = timezone(timedelta(minutes=offset))
    text = f"\ufeffTIMESTAMP,ContextTokens,GeneratedTokens{end}"
    for at, (_, prompt, output) in zip(starts, gaps, strict=True):
        day = datetime(2024, 2, 28, 23, 59, tzinfo=timezone.utc).astimezone(zone) + timedelta(seconds=at // 10**9)
        fraction = f".{at % 10**9:09d}"[: digits + 1] if digits else ""
        sign = f"{day:%z}"
        text += f"{day:%Y-%m-%d %H:%M:%S}{fraction}{sign[:3]}:{sign[3:]},{prompt},{output}{end}"
    rows = list(read_trace(_write(folder, text + end)))
    assert [row.arrival_s for row in rows] == [(at - starts[0]) / 1e9 for at in starts]
    assert [(row.num_prompt_tokens, row.num_output_tokens) for row in rows] == [(p, o) for _, p, o in gaps]


def test_an_offset_moves_a_time_and_no_offset_is_utc() -> None:
    same = ["2024-05-10 12:00:00", "2024-05-10T12:00:00.000Z", "2024-05-10 14:30:00+02:30", "2024-05-10 05:00:00-0700"]
    assert len({nanoseconds(text) for text in same}) == 1
    assert nanoseconds("2024-05-10 24:00:00") is nanoseconds("2024-02-30 00:00:00") is nanoseconds("12:00:00") is None


@QUICK
@given(gaps=_GAPS, new=st.booleans(), names=st.lists(st.sampled_from(["", "a", "b-1"]), min_size=9, max_size=9))
def test_burstgpt_rows_come_back_as_they_were_written(
    folder: Path, gaps: list[tuple[int, int, int]], new: bool, names: list[str]
) -> None:
    times = [19440110 + at / 10 for at in itertools.accumulate(gap % 1000 for gap, _, _ in gaps)]
    text = BURST.replace(",", ",Session ID,Elapsed time,", 1) if new else BURST
    for at, name, (_, prompt, output) in zip(times, names, gaps, strict=False):
        text += f"{at},{f'{name},3,' if new else ''}GPT-4,{prompt},{output},{prompt + output},API log\n"
    rows = list(read_trace(_write(folder, text)))
    assert [row.arrival_s for row in rows] == times
    assert [(row.num_prompt_tokens, row.num_output_tokens) for row in rows] == [(p, o) for _, p, o in gaps]
    assert [row.session for row in rows] == [
        (name or None) if new else None for name, _ in zip(names, gaps, strict=False)
    ]


_ROWS = st.lists(
    st.fixed_dictionaries(
        {"gap": st.floats(0, 1e4), "num_prompt_tokens": COUNTS, "num_output_tokens": COUNTS},
        optional={
            "client_id": COUNTS,
            "priority": st.integers(-5, 5),
            "session": st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=5).filter(
                str.strip
            ),
            "hash_ids": st.lists(COUNTS, max_size=4),
        },
    ),
    min_size=1,
    max_size=6,
)


def _expected(entries: list[dict]) -> list[tuple]:
    return [
        (
            *(e["arrival_s"], e["num_prompt_tokens"], e["num_output_tokens"], e.get("client_id", 0)),
            *(e.get("priority", 0), e.get("session"), tuple(e["hash_ids"]) if "hash_ids" in e else None),
        )
        for e in entries
    ]


def _found(rows: list[TraceRow]) -> list[tuple]:
    return [
        (r.arrival_s, r.num_prompt_tokens, r.num_output_tokens, r.client_id, r.priority, r.session, r.hash_ids)
        for r in rows
    ]


def _with_times(entries: list[dict]) -> list[dict]:
    times = itertools.accumulate(entry["gap"] for entry in entries)
    return [
        {"arrival_s": at} | {k: v for k, v in e.items() if k != "gap"} for at, e in zip(times, entries, strict=True)
    ]


@QUICK
@given(entries=_ROWS, order=st.permutations(range(6)))
def test_rows_of_our_own_come_back_as_they_were_written(folder: Path, entries: list[dict], order: list[int]) -> None:
    entries = _with_times(entries)
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    assert _found(list(read_trace(_write(folder, text)))) == _expected(entries)
    for entry in entries:
        entry.pop("hash_ids", None)
    names = ("arrival_s", "num_prompt_tokens", "num_output_tokens", "client_id", "priority", "session")
    path = folder / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [names[i] for i in order])
        writer.writeheader()
        writer.writerows(entries)
    assert _found(list(read_trace(str(path)))) == _expected(entries)


@QUICK
@given(entries=_ROWS)
def test_mooncake_rows_come_back_as_they_were_written(folder: Path, entries: list[dict]) -> None:
    entries = _with_times(entries)
    text = ""
    for entry in entries:
        entry["arrival_s"] = round(entry["arrival_s"])
        written = {"timestamp": entry["arrival_s"] * 1000, "input_length": entry["num_prompt_tokens"]}
        written |= {"output_length": entry["num_output_tokens"]}
        text += json.dumps(written | {k: v for k, v in entry.items() if k == "hash_ids"}) + "\n\n"
    kept = ("arrival_s", "num_prompt_tokens", "num_output_tokens", "hash_ids")
    expected = _expected([{k: e[k] for k in kept if k in e} for e in entries])
    assert _found(list(read_trace(_write(folder, text)))) == expected


@pytest.mark.parametrize(
    ("text", "format", "says"),
    [
        (AZURE + "2023-11-16 18:15,1,2", "auto", "line 3: TIMESTAMP='2023-11-16 18:15': must be a time such as"),
        (AZURE + "2023-11-16 18:15:50,x,2", "auto", "line 3: ContextTokens='x': must be a whole number, 0 or more"),
        (AZURE + "2023-11-16 18:15:50,1,-2", "auto", "line 3: GeneratedTokens='-2': must be a whole number, 0 or more"),
        (AZURE + "2023-11-16 18:15:50,1", "auto", "line 3: line='2023-11-16 18:15:50,1': must be one of 3 columns"),
        (AZURE + "2023-11-16 18:15:40,1,2", "auto", "sort the file"),
        (AZURE, "burstgpt", "line 1: header='TIMESTAMP,ContextTokens,GeneratedTokens': must be one with a column Time"),
        (BURST + "nan,m,1,2,3,l", "auto", "line 2: Timestamp='nan': must be a number, 0 or more"),
        (BURST + "3,m,1_0,2,3,l", "auto", "line 2: Request tokens='1_0': must be a whole number"),
        (BURST + "3,m,1,2.0,3,l", "auto", "line 2: Response tokens='2.0': must be a whole number"),
        (BURST + "9,m,1,2,3,l\n\n4,m,1,2,3,l", "auto", "line 4: arrival='4.0 s': must be the line above's 9.0 s or la"),
        (MOON + "{", "auto", "line 2: line='{': must be a JSON object"),
        (MOON + "[1]", "auto", "line 2: line='[1]': must be a JSON object"),
        (MOON + '{"timestamp": 9}', "auto", "line 2: input_length=None: must be a whole number"),
        (MOON.replace("[1]", "[-1]"), "auto", "line 1: hash_ids=-1: must be a whole number, 0 or more"),
        (MOON.replace("[1]", "1"), "auto", "line 1: hash_ids=1: must be a list of whole numbers"),
        (MOON.replace("6", "true"), "auto", "line 1: input_length=True: must be a whole number"),
        (f"{PLAIN},prio\n", "auto", "line 1: column='prio': must be one of arrival_s"),
        (f"{PLAIN},priority\n1,2,3,high", "auto", "line 2: priority='high': must be a whole number"),
        (f"{PLAIN}\n,2,3", "auto", "line 2: arrival_s='': must be a number, 0 or more"),
        (OWN + '"num_prompt_tokens": 2, "lenght": 3}', "auto", "line 1: key='lenght': must be one of"),
        (
            OWN + '"prompt": "a", "num_prompt_tokens": 3}',
            "auto",
            "line 1: keys=['num_prompt_tokens', 'prompt']: must be",
        ),
        (OWN[:-2] + "}", "auto", "line 1: keys=[]: must be one of num_prompt_tokens"),
        (OWN + '"prompt": ""}', "auto", "line 1: prompt='': must be text"),
        (OWN + '"prompt": "a", "hash_ids": [1]}', "auto", "line 1: hash_ids=[1]: must be beside num_prompt_tokens"),
        (OWN + '"num_prompt_tokens": 2, "session": 5}', "auto", "line 1: session=5: must be text"),
        (OWN.replace("0", "1e999") + '"num_prompt_tokens": 2}', "auto", "line 1: arrival_s=inf: must be a number"),
        ("a,b\n1,2", "auto", "line 1: header='a,b': must be that of a format we know; choose workload.format of azure"),
        ("", "auto", "line 1: header='': must be that of a format we know"),
        ("", "csv", "line 1: header='': must be one with a column arrival_s"),
        ("", "azur", "workload.format='azur': must be auto, azure, burstgpt, mooncake, csv, jsonl, or the import path"),
        ("", "no.such.Reader", "workload.format._target_='no.such.Reader': cannot be imported"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path: Path, text: str, format: str, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        list(read_trace(_write(tmp_path, text), format))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_named_by_their_line(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(AZURE.encode() + b"2023-11-16 18:15:50,\xff,2\n")
    with pytest.raises(ValueError, match=r"line 3: line=.*must be text in UTF-8"):
        list(read_trace(str(path)))
    with pytest.raises(ValueError, match=r"workload\.path='.*absent': cannot be read"):
        list(read_trace(str(tmp_path / "absent")))


def test_a_reader_of_ones_own_is_named_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.workloads.traces.base.Backwards", Backwards, raising=False)
    path = _write(tmp_path, "3 20 0.5\n4 30 0.75\n")
    rows = list(read_trace(path, "experiments.workloads.traces.base.Backwards"))
    assert [(row.arrival_s, row.num_prompt_tokens, row.num_output_tokens) for row in rows] == [
        (0.5, 20, 3),
        (0.75, 30, 4),
    ]


@pytest.mark.parametrize("format", ["azure", "jsonl"])
def test_fifteen_thousand_rows_are_read_in_the_memory_of_a_few(tmp_path: Path, format: str) -> None:
    path, count = tmp_path / "long", 15_000
    with path.open("w") as file:
        if format == "azure":
            file.write("TIMESTAMP,ContextTokens,GeneratedTokens\n")
        for i in range(count):
            if format == "azure":
                file.write(f"2024-05-10 {i // 3600:02d}:{i // 60 % 60:02d}:{i % 60:02d}.5+00:00,{i % 4000},{i % 300}\n")
            else:
                file.write(
                    f'{{"arrival_s": {i}, "num_prompt_tokens": 9, "num_output_tokens": 1, "hash_ids": [{i}, 7]}}\n'
                )
    rows = read_trace(str(path))
    next(rows)
    tracemalloc.start()
    try:
        total = sum(1 for _ in rows)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == count - 1
    # The file has 600 kB and more, and rows that are kept 4 MB.
    assert peak_bytes < 300_000
