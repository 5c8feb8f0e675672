"""lm-evaluation-harness over our engine, where it is installed: its numbers are those that we find ourselves."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.cli import main
from experiments.points import ASSETS
from experiments.quality.evaluation import evaluate
from experiments.quality.items import Items, make_items
from experiments.quality.settings import QualityConfig
from minivllm import LLM

DRAFT = str(ASSETS / "reference-draft")
needs_lm_eval = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
# What it imports warns of many things.
pytestmark = pytest.mark.filterwarnings("ignore")

ROLLING = """\
task: held_out_windows
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/windows.jsonl}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: byte_perplexity}}]
"""
IDENTIFIERS = """\
task: next_identifier
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/items.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{context}}}}"
doc_to_target: "{{{{expected}}}}"
generation_kwargs: {{max_gen_toks: 12, do_sample: false, until: ["\\n"]}}
filter_list:
  - name: leading
    filter:
      - {{function: regex, regex_pattern: "^[ \\t]*([^\\\\W\\\\d]\\\\w*)", fallback: ""}}
      - {{function: take_first}}
metric_list: [{{metric: exact_match}}]
"""
CHOICES = """\
task: which_identifier
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/items.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(DRAFT, num_threads=1)


@pytest.fixture(scope="module")
def items(llm: LLM) -> Items:
    config = QualityConfig(num_windows=12, window_tokens=40, num_prompts=0, num_task_items=10, task_context_tokens=60)
    return make_items(config, llm.tokenizer)


@pytest.fixture
def tasks(tmp_path: Path, llm: LLM, items: Items, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tasks made of our items, those windows only that tokenize as they were cut."""
    # Data sets are copied to a cache, and must not be those of an earlier test; nor is a hub in reach.
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    decode = llm.tokenizer.decode
    lines = [{"text": decode(window[1:])} for window in _whole(llm, items)]
    (tmp_path / "windows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    names = [item.expected for item in items.tasks]
    lines = [
        {
            "context": decode(item.context[1:]),
            "expected": item.expected,
            "choices": [" " + item.expected, " " + names[i - 1], " zzz"],
        }
        for i, item in enumerate(items.tasks)
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name, text in (("rolling", ROLLING), ("identifiers", IDENTIFIERS), ("choices", CHOICES)):
        (tmp_path / f"{name}.yaml").write_text(text.format(folder=tmp_path))
    return tmp_path


def _whole(llm: LLM, items: Items) -> list[tuple[int, ...]]:
    """Windows whose text tokenizes as they were cut, and that are texts of their own to lm-eval."""
    encode = llm.tokenizer.encode
    found = [
        window
        for window in items.windows
        if encode(llm.tokenizer.decode(window[1:]), add_special_tokens=False) == list(window[1:])
    ]
    assert len(found) >= 5
    return found


@needs_lm_eval
def test_its_perplexity_and_its_score_of_our_task_are_ours(llm: LLM, items: Items, tasks: Path) -> None:
    from experiments.lm_eval_model import evaluate_tasks

    windows = _whole(llm, items)
    ours = evaluate(llm, Items(windows=tuple(windows), prompts=(), tasks=items.tasks), output_tokens=1)
    nll = sum(float(window.nll.double().sum()) for window in ours.windows)
    num_bytes = sum(len(llm.tokenizer.decode(window[1:]).encode()) for window in windows)
    correct = [answer == item.expected for answer, item in zip(ours.answers, items.tasks, strict=True)]
    assert any(correct) and not all(correct)
    results = evaluate_tasks(llm, ["held_out_windows", "next_identifier"], include=tasks, bootstrap_iters=0)["results"]
    assert results["held_out_windows"]["byte_perplexity,none"] == pytest.approx(math.exp(nll / num_bytes), rel=1e-4)
    assert results["next_identifier"]["exact_match,leading"] == pytest.approx(sum(correct) / 10)


@needs_lm_eval
def test_the_command_prints_a_table_and_names_what_is_wrong(tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ["model=reference_draft", "execution.num_threads=1", "--include", str(tasks)]
    assert main(["lm-eval", "which_identifier", *config, "--limit", "4"]) == 0
    assert "which_identifier" in capsys.readouterr().out
    assert main(["lm-eval", "no_such_task", *config]) == 2
    assert "minivllm: no_such_task: no such task" in capsys.readouterr().err
    assert main(["lm-eval", "which_identifier", "model=hf", "model.path=/nowhere", "--limit", "1"]) == 2
    assert "minivllm: model.path='/nowhere': must be" in capsys.readouterr().err


class _Request:
    def __init__(self, *args: Any) -> None:
        self.args = args


@needs_lm_eval
def test_likelihoods_are_those_of_transformers_whatever_shares_a_context(llm: LLM) -> None:
    from transformers import AutoModelForCausalLM

    from experiments.lm_eval_model import MinivllmLM

    model, encode = AutoModelForCausalLM.from_pretrained(DRAFT, dtype=torch.float32), llm.tokenizer.encode
    asked = [("import os\nimport", " sys"), ("import os\nimport", " zebra\n"), ("", "def main():"), ("import os", ".")]
    # One more than the context holds.
    asked.append(("x = 1\n" * 1100 + "y =", " x"))
    got = MinivllmLM(llm).loglikelihood([_Request(*pair) for pair in asked])
    for (context, continuation), (total, is_greedy) in zip(asked, got, strict=True):
        first = [llm.tokenizer.bos_token_id]
        whole = first + encode(context + continuation, add_special_tokens=False)
        num = len(whole) - len(first + encode(context, add_special_tokens=False)) if context else len(whole) - 1
        inputs = whole[:-1][-2048:]
        with torch.no_grad():
            logprobs = model(torch.tensor([inputs])).logits[0].double().log_softmax(-1)[-num:]
        targets = torch.tensor(whole[-num:])
        assert total == pytest.approx(float(logprobs.gather(1, targets[:, None]).sum()), abs=2e-3)
        assert is_greedy == bool((logprobs.argmax(-1) == targets).all())


@needs_lm_eval
def test_generation_stops_where_a_task_says(llm: LLM) -> None:
    from experiments.lm_eval_model import MinivllmLM

    lm = MinivllmLM(llm)
    greedy = {"do_sample": False, "max_gen_toks": 12}
    (free,) = lm.generate_until([_Request("def walk(self", greedy)])
    assert len(free) > 4
    both = lm.generate_until(
        [_Request("def walk(self", {**greedy, "until": free[3]}), _Request("def walk(self", greedy | {"until": []})]
    )
    assert both == [free[: free.index(free[3])], free]
    with pytest.raises(
        ValueError, match=r"^generation_kwargs\.num_beams=4: no such setting here; there are until, do_s"
    ):
        lm.generate_until([_Request("x", {"num_beams": 4})])


def test_without_the_package_one_line_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "lm_eval" else known(name))
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["lm-eval", "hellaswag"]) == 2
    assert capsys.readouterr().err == "minivllm: lm-eval: is not installed; pip install 'minivllm[lm_eval]'\n"
