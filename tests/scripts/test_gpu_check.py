"""The check of a GPU, on a machine without one: what it computes by, how it keeps what it found, and all of it once,
interpreted, on the smallest shapes."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from gpu_checks import paged, results, running, sections  # noqa: E402
from gpu_checks.check import progress_file, relative_error, worst_row  # noqa: E402
from gpu_checks.results import Row  # noqa: E402

from minivllm_kernels.prefill_attention.reference import prefill_attention_reference  # noqa: E402

# A section of three pieces, as a process: the middle one breaks it in the way that the test names.
_SCRIPT = """
import os, sys, time
from pathlib import Path
sys.path[:0] = [{scripts!r}]
import torch
from gpu_checks.check import Check, run_pieces

class Section:
    def pieces(self, check):
        yield "one", lambda: check.within("one", 0.5, 1.0)
        yield "two", lambda: {breaks}
        yield "three", lambda: check.within("three", 0.5, 1.0)

given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
check = Check(
    section=given["--child"], out=Path(given["--out"]), device=torch.device({device!r}), tiny=False, peaks=None
)
run_pieces(Section(), check, shard=0, num_shards=1, first=int(given["--first"]))
"""


def _raise_(text: str) -> str:
    return f"(_ for _ in ()).throw(RuntimeError({text!r}))"


def _watch(folder: Path, breaks: str, device: str = "cpu", seconds: float = 300) -> list[Row]:
    """The rows of such a section, run and looked after as `gpu_check` does."""
    script = folder / "script.py"
    script.write_text(_SCRIPT.format(scripts=str(ROOT / "scripts"), breaks=breaks, device=device))
    options = argparse.Namespace(out=folder, device="cpu", tiny=False)
    running._watch(script, options, ["speed"], time.monotonic() + seconds)
    return results.read(folder / "rows.jsonl")


@pytest.mark.parametrize(
    ("breaks", "device", "says"),
    [
        ("os._exit(9)", "cpu", "exit status 9"),
        (_raise_("no such thing"), "cpu", "RuntimeError: no such thing"),
        (_raise_("CUDA error: an illegal memory access"), "cuda", "RuntimeError: CUDA error: an illegal memory access"),
    ],
    ids=["process-dies", "piece-raises", "device-is-lost"],
)
def test_what_breaks_one_piece_is_a_failed_row_and_the_next_piece_runs(
    tmp_path: Path, breaks: str, device: str, says: str
) -> None:
    rows = _watch(tmp_path, breaks, device)
    assert [(row.name, row.ok) for row in rows] == [("one", True), ("two", False), ("three", True)]
    assert says in rows[1].detail


def _sleeping(folder: Path, ends_s: float) -> running._Running:
    """A process that is at its piece "two", with number 1."""
    progress_file(folder, "speed", 0).write_text('{"number": 1, "name": "two"}')
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    return running._Running(name="speed", shard=0, process=process, ends_s=ends_s)


def _look_after(folder: Path, one: running._Running) -> tuple[bool, Row]:
    """Whether it goes on, and the row that says why not. What is started instead leaves its arguments."""
    script = folder / "script.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nPath(sys.argv[0] + '.again').write_text(' '.join(sys.argv))"
    )
    options = argparse.Namespace(out=folder, device="cpu")
    with (folder / "log.txt").open("wb") as log:
        goes_on = running._goes_on(script, options, one, folder / "rows.jsonl", log)
    one.process.wait()
    (row,) = results.read(folder / "rows.jsonl")
    return goes_on, row


def test_a_piece_that_hangs_is_ended_and_the_next_piece_runs(tmp_path: Path) -> None:
    one = _sleeping(tmp_path, time.monotonic() + 3600)
    long_ago_s = time.time() - sections.SECTIONS["speed"].piece_s - 1
    os.utime(progress_file(tmp_path, "speed", 0), (long_ago_s, long_ago_s))
    hanging = one.process
    goes_on, row = _look_after(tmp_path, one)
    assert goes_on and hanging.returncode != 0
    assert row.name == "two" and row.ok is False and "hangs" in row.detail
    assert "--first 2" in (tmp_path / "script.py.again").read_text()


def test_a_section_out_of_time_is_ended_and_says_where_it_was(tmp_path: Path) -> None:
    goes_on, row = _look_after(tmp_path, _sleeping(tmp_path, time.monotonic() - 1))
    assert not goes_on and row.name == "speed: out of time" and "during two" in row.detail
    assert not (tmp_path / "script.py.again").exists()


def test_without_time_nothing_is_started(tmp_path: Path) -> None:
    (row,) = _watch(tmp_path, "None", seconds=1)
    assert row.ok is False and "no time is left" in row.detail


@pytest.mark.parametrize("cache_dtype", [None, torch.int8], ids=["plain", "int8"])
@pytest.mark.parametrize("window", [None, 6], ids=["all", "window6"])
def test_its_attention_in_chunks_is_the_kernels_reference(
    cache_dtype: torch.dtype | None, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = paged.Sizes(
        queries=(5, 1, 0, 7), contexts=(5, 20, 7, 18), num_heads=6, num_kv_heads=2, head_dim=8, block_size=4,
        dtype=torch.float32, cache_dtype=cache_dtype, sliding_window=window,
    )  # fmt: skip
    batch = paged.make_batch(sizes, torch.device("cpu"), torch.Generator().manual_seed(0), extra_queries=2)
    # Three queries a chunk of the last request.
    monkeypatch.setattr(paged, "_CHUNK_ELEMENTS", 3 * 6 * 18)
    expected = prefill_attention_reference(
        batch.q.double(), batch.kv_cache, batch.block_table, batch.cu_seqlens_q, batch.context_lens,
        scale=sizes.scale, sliding_window=window, kv_scales=batch.kv_scales,
    )  # fmt: skip
    torch.testing.assert_close(paged.expected_output(batch), expected, rtol=1e-12, atol=1e-12)


def test_errors_see_a_wrong_row_among_many_and_a_nan_anywhere() -> None:
    expected = torch.randn((1000, 16), generator=torch.Generator().manual_seed(0))
    wrong = expected.clone()
    wrong[7] *= 1.01
    assert relative_error(wrong, expected) < 1e-3 < worst_row(wrong, expected)
    wrong[7, 3] = float("nan")
    assert not relative_error(wrong, expected) <= 1.0 and not worst_row(wrong, expected) <= 1.0


def test_an_aim_is_met_from_the_side_that_its_unit_means() -> None:
    fast, slow = (
        Row(section="s", name="n", value=3, unit="tok/s", aim=2),
        Row(section="s", name="n", value=3, unit="ms", aim=2),
    )
    assert (fast.met, slow.met) == (True, False)
    assert Row(section="s", name="n", aim=2).met is None


def test_rows_are_kept_but_for_one_that_was_cut_off(tmp_path: Path) -> None:
    row, file = Row(section="s", name="subject: case", value=0.5, ok=True), tmp_path / "rows.jsonl"
    results.append(file, row)
    with file.open("a") as rows:
        rows.write('{"section": "s", "na')
    assert results.read(file) == [row] and row.subject == "subject"


def test_a_sweep_is_shortened_to_its_default_and_its_best() -> None:
    rows = [Row(section="tune", name=f"tune x: {i}", value=10.0 - i, unit="ms") for i in range(12)]
    rows.append(Row(section="tune", name="tune x: default", value=99.0, unit="ms"))
    page = results.markdown(rows, {}, "command", every_check=False)
    assert "tune x: default" in page and "tune x: 11 " in page and "tune x: 3 " not in page
    assert "tune x: 3 " in results.markdown(rows, {}, "command", every_check=True)


def test_timed_sections_bring_their_peaks() -> None:
    assert sections.chosen("decode", tune=False) == ["decode"]
    assert sections.chosen("speed", tune=False) == ["peaks", "speed"]
    assert sections.chosen("", tune=True) == list(sections.SECTIONS)
    assert not any(name.startswith("tune") for name in sections.chosen("", tune=False))


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(ROOT / "scripts" / "gpu_check"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)


def test_without_a_gpu_it_says_so_in_one_line() -> None:
    finished = _run()
    assert finished.returncode == 2 and len(finished.stdout.strip().splitlines()) == 1 and "no GPU" in finished.stdout


@pytest.mark.parametrize(
    ("arguments", "needs"),
    [(["--device", "cpu"], "--tiny"), (["--tiny"], "--device cpu"), (["--device", "cpu", "--tiny"], "--out")],
    ids=["cpu", "tiny", "tiny-on-a-cpu"],
)
def test_what_proves_the_script_is_kept_apart_from_records(arguments: list[str], needs: str) -> None:
    finished = _run(*arguments)
    assert finished.returncode == 2 and f"it needs {needs}" in finished.stderr


@pytest.mark.slow
def test_every_section_runs_interpreted_and_claims_no_times(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    finished = _run("--device", "cpu", "--tiny", "--tune", "--out", str(tmp_path))
    rows = results.read(tmp_path / "rows.jsonl")
    assert finished.returncode == 0, [row.text() for row in rows if row.ok is False] + [finished.stderr[-2000:]]
    # `warm` has nothing to compile here.
    assert {row.section for row in rows} == set(sections.SECTIONS) - {"warm"}
    assert all(row.value is None and row.floor is None for row in rows if row.ok is None)
    assert len([row for row in rows if row.ok]) > 50
    table = pq.read_table(tmp_path / "results.parquet")
    assert table.num_rows == len(rows)
    assert {"section", "name", "value", "unit", "floor", "aim", "ok", "versions", "command"} <= set(table.column_names)
    assert (tmp_path / "results.md").read_text().count("not measured") > 20
