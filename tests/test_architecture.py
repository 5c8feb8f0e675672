"""The house's borders: who may import whom, what stays light, and what must not exist."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("analysis", "experiments", "kernels", "minivllm", "scripts", "tests")
MAX_LINES = 400


def _run(code: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that sees what an installation would see."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)


def _loaded_after(code: str, *packages: str) -> set[str]:
    """Which of the packages a fresh interpreter has loaded once it ran the code."""
    finished = _run(f"import sys\n{code}\nprint('loaded:', *({set(packages)!r} & sys.modules.keys()), file=sys.stderr)")
    assert finished.returncode == 0, finished.stderr
    return set(finished.stderr.strip().splitlines()[-1].removeprefix("loaded:").split())


def test_floors_and_wings_import_only_what_they_may() -> None:
    finished = _run("import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))")
    assert finished.returncode == 0, finished.stdout


def test_kernels_is_a_plain_folder() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists(), "it would shadow Hugging Face's package of that name"
    assert (ROOT / "kernels" / "minivllm_kernels" / "__init__.py").exists()


def test_no_test_folder_is_a_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_the_host_wing_loads_no_tensors() -> None:
    host = (
        "import minivllm.scheduler, minivllm.blocks, minivllm.request, minivllm.plan, minivllm.config, minivllm.clock"
    )
    assert _loaded_after(host, "torch", "transformers", "numpy", "pandas", "hydra") <= {"numpy"}


def test_help_loads_nothing_heavy() -> None:
    help_ = (
        "import runpy\nsys.argv = ['minivllm', '--help']\n"
        "try:\n    runpy.run_module('experiments', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code, end.code"
    )
    heavy = ("torch", "transformers", "numpy", "pandas", "pyarrow", "matplotlib", "hydra", "omegaconf", "wandb")
    assert _loaded_after(help_, *heavy) == set()


def test_loading_tables_waits_for_no_plots() -> None:
    assert _loaded_after("import analysis", "torch", "matplotlib", "scipy", "statsmodels", "hydra") == set()


@pytest.mark.parametrize("source", SOURCES)
def test_a_reader_can_hold_one_file(source: str) -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in (ROOT / source).rglob("*.py")
    }
    assert lengths, f"no Python files under {source}"
    assert {path: lines for path, lines in lengths.items() if lines > MAX_LINES} == {}
