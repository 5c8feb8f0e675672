"""Which reference serves which point, and what becomes of one that cannot be made."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from experiments.points import ASSETS
from experiments.quality import reference_process
from experiments.quality.reference import can_be_had, is_whole, path_of
from experiments.quality.reference_process import ReferenceFailed, ensure
from experiments.quality.settings import QualityConfig
from experiments.results import ResultsFolder
from minivllm.config import CacheConfig, EngineConfig, ExecutionConfig, ModelConfig, SchedulerConfig

ENGINE = EngineConfig(model=ModelConfig(path=str(ASSETS / "reference-draft")))
QUALITY = QualityConfig()


def _changed(**parts: Any) -> EngineConfig:
    return dataclasses.replace(ENGINE, **parts)


def test_points_that_differ_in_parts_alone_share_a_reference(tmp_path: Path) -> None:
    path = path_of(tmp_path, ENGINE, QUALITY)
    assert path.parent == tmp_path / ".reference"
    for same in (
        _changed(scheduler=SchedulerConfig(max_num_seqs=3)),
        _changed(cache=CacheConfig(block_size=4)),
        _changed(execution=ExecutionConfig(dtype="bfloat16", num_threads=1)),
    ):
        assert path_of(tmp_path, same, QUALITY) == path
    assert path_of(tmp_path, ENGINE, dataclasses.replace(QUALITY, enabled=True)) == path


def test_another_model_device_or_question_is_another_reference(tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    paths = set()
    for content in ("a", "b"):
        text.write_text(content)
        paths.add(path_of(tmp_path, ENGINE, dataclasses.replace(QUALITY, text=str(text))))
    paths |= {path_of(tmp_path, ENGINE, QualityConfig(**{key: 9})) for key in ("num_windows", "output_tokens")}
    paths.add(path_of(tmp_path, ENGINE, QUALITY))
    paths.add(path_of(tmp_path, _changed(execution=ExecutionConfig(device="cuda")), QUALITY))
    paths.add(path_of(tmp_path, _changed(model=ModelConfig(path=str(ASSETS / "reference-target"))), QUALITY))
    assert len(paths) == 7


def test_a_checkpoint_that_is_itself_quantized_has_none(tmp_path: Path) -> None:
    assert can_be_had(ENGINE.model)
    for config, had in (({"model_type": "llama"}, True), ({"quantization_config": {"bits": 4}}, False)):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert can_be_had(ModelConfig(path=str(tmp_path))) is had


@pytest.fixture
def python_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a shell script where the interpreter was."""

    def put(script: str) -> None:
        fake = tmp_path / "python"
        fake.write_text(f"#!/bin/sh\n{script}\n")
        fake.chmod(0o755)
        monkeypatch.setattr(reference_process.sys, "executable", str(fake))

    return put


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        (
            "kill -9 $$",
            ReferenceFailed,
            "quality: the unquantized reference died of signal 9 (SIGKILL), most likely out of memory; "
            "quality=off leaves quality out",
        ),
        (
            "exit 3",
            ReferenceFailed,
            "quality: the unquantized reference left with exit code 3 and no result; quality=off leaves quality out",
        ),
        (
            'echo noise; echo \'{"type": "OSError", "message": "no space"}\'; exit 1',
            ReferenceFailed,
            "quality: the unquantized reference failed: OSError: no space; quality=off leaves quality out",
        ),
        (
            'echo \'{"type": "ValueError", "message": "model.path: too large"}\'; exit 1',
            ValueError,
            "quality: the unquantized reference: model.path: too large; quality=off leaves quality out",
        ),
        (
            'echo \'{"type": "ValueError", "message": "quality.text: too short"}\'; exit 1',
            ValueError,
            "quality.text: too short",
        ),
        # It says that all is well, and there is no file.
        (
            "exit 0",
            ReferenceFailed,
            "quality: the unquantized reference left with exit code 0 and no result; quality=off leaves quality out",
        ),
    ],
    ids=["killed", "silent", "raised", "refused", "refused-by-quality", "no-file"],
)
def test_a_reference_that_fails_says_why(
    tmp_path: Path, python_is: Any, script: str, kind: type[Exception], message: str
) -> None:
    python_is(script)
    with pytest.raises(kind) as error:
        ensure(tmp_path, ENGINE, QUALITY)
    assert str(error.value) == message and type(error.value) is kind


def test_what_is_no_reference_is_made_again_and_what_is_one_is_not(tmp_path: Path, python_is: Any) -> None:
    path = path_of(tmp_path, ENGINE, QUALITY)
    path.parent.mkdir()
    path.write_bytes(b"half of it")
    assert not is_whole(path) and not is_whole(tmp_path / "absent")
    good = tmp_path / "good"
    _write_some_reference(good)
    python_is(f"cat > {tmp_path}/order; cp {good} {path}")
    assert ensure(tmp_path, ENGINE, QUALITY) == path
    order = json.loads((tmp_path / "order").read_text())
    assert ModelConfig(**order["model"]) == ENGINE.model and QualityConfig(**order["quality"]) == QUALITY
    assert order["device"] == "cpu" and order["path"] == str(path)
    python_is("exit 3")
    assert ensure(tmp_path, ENGINE, QUALITY) == path


def _write_some_reference(path: Path) -> None:
    from experiments.quality.evaluation import Evaluation
    from experiments.quality.items import Items
    from experiments.quality.reference import write

    nothing = Items(windows=(), prompts=(), tasks=())
    write(path, nothing, Evaluation(windows=(), generated=(), answers=()), [], "float32")
    assert is_whole(path)


def test_cleaning_a_folder_leaves_references_alone(tmp_path: Path) -> None:
    reference, on_its_way = tmp_path / ".reference" / "a.safetensors", tmp_path / ".reference" / ".a.1234.tmp"
    leftover = tmp_path / "requests" / ".b-r0.parquet.1.tmp"
    for file in (reference, on_its_way, leftover):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    ResultsFolder(tmp_path).clean(lambda _: None)
    assert reference.exists() and on_its_way.exists() and not leftover.exists()


def test_a_process_that_makes_one_talks_json_and_logs_the_rest(tmp_path: Path) -> None:
    """Through the real process: a model that is not there."""
    with pytest.raises(
        ValueError, match=r"^quality: the unquantized reference: model\.path='/nowhere/at/all': must be .*; qual"
    ):
        ensure(tmp_path, EngineConfig(model=ModelConfig(path="/nowhere/at/all")), QUALITY)
    assert not os.listdir(tmp_path)
