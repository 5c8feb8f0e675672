"""`minivllm quantize` as a user gives it, on the model that ships."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.cli import main
from minivllm import LLM, SamplingParams

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = str(ROOT / "experiments" / "assets" / "reference-target")


def test_what_is_written_says_the_same_as_what_it_was_made_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["quantize", str(out), "quantization=int4", "quantization.group_size=32"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{out}: 1 file of weights, ")
    assert printed.endswith(f"as trained: lm_head\nminivllm run model=hf model.path={out}\n")
    assert "int4 in groups of 32 with zeros" in printed
    llm = LLM(str(out))
    prompt = "import os\n\ndef walk("
    text = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=12))[0].outputs[0].text
    from minivllm.config import QuantizationConfig

    direct = LLM(MODEL, quantization=QuantizationConfig.named("int4", group_size=32))
    assert direct.generate(prompt, SamplingParams(temperature=0, max_tokens=12))[0].outputs[0].text == text != ""


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["quantization=nf4"], "quantization=nf4: cannot be saved"),
        ([], "quantization=none: leaves nothing to save"),
        (["quantization=int44"], "quantization=int44: no such member; did you mean int4"),
        (["quantization=int4,gptq"], "minivllm quantize writes one model, these are 2"),
        (["quantization=int4", "model=random"], "model.weights=random: must be checkpoint where weights are saved"),
        (["quantization=int4", "quantization.group_size=48"], "quantization.group_size=48: must be one of 32, 64, 128"),
        (
            ["quantization=int4", "model=hf", "model.path=no/such/folder"],
            "model.path='no/such/folder': must be an existing",
        ),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    overrides: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", str(tmp_path / "out"), *overrides]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"minivllm: {complaint}") and error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["quantize", str(tmp_path), "quantization=int4"]) == 2
    assert "must be absent or an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
