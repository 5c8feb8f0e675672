"""`minivllm doctor` on what is optional: what is there, what is not, and how to get it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from experiments import doctor, environment

ROOT = Path(__file__).resolve().parent.parent.parent


def _extras() -> dict[str, set[str]]:
    """Extra -> the packages that it installs, of all but [dev]."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (section,) = re.findall(r"^\[project\.optional-dependencies\]$(.*?)^\[", text, re.MULTILINE | re.DOTALL)
    listed = dict(re.findall(r"^(\w+) = \[([^\]]*)\]$", section, re.MULTILINE))
    return {extra: set(re.findall(r'"([\w-]+)', packages)) for extra, packages in listed.items() if extra != "dev"}


def test_every_extra_is_listed_with_its_version_or_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    extras = _extras()
    assert extras["ray"] == {"ray"} and extras["gpu"] == {"triton", "nvidia-ml-py"}
    known = environment.version
    versions = {"joblib": "1.2.3", "triton": "4.5.6"}
    optional = set().union(*extras.values())
    monkeypatch.setattr(environment, "version", lambda name: versions.get(name) if name in optional else known(name))
    # Wide, so that no line is broken.
    monkeypatch.setenv("COLUMNS", "200")
    assert doctor.print_report() == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    for extra, packages in extras.items():
        for package in packages:
            has = versions.get(package)
            _, mark, detail = (cell.strip() for cell in lines[package].split("│"))
            assert mark == ("yes" if has else "no")
            assert detail.startswith(f"{has}; " if has else f"pip install 'minivllm[{extra}]' allows ")
    assert "launcher=ray" in lines["ray"] and "minivllm search" in lines["optuna"]


def test_slurm_is_said_to_be_missing_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environment, "version", lambda name: "1.0" if name == "submitit" else None)
    monkeypatch.setenv("PATH", str(tmp_path))

    def says() -> str:
        return next(finding.detail for finding in doctor._extras() if finding.what == "submitit")

    assert says().endswith("(no sbatch here: launcher.executor=local only)")
    (tmp_path / "sbatch").touch(mode=0o755)
    assert says() == "1.0; launcher=submitit: runs as jobs of Slurm"
