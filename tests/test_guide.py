"""The guide's files are written and its commands are run, one after the other, as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
_BLOCK = re.compile(r"^```(python|bash)(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_every_command_of_the_guide_runs(page: str, tmp_path: Path) -> None:
    text = (ROOT / "docs" / page).read_text()
    blocks = _BLOCK.findall(text)
    assert len(blocks) >= 5 and len(blocks) == text.count("```") // 2
    paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    for language, file, code in blocks:
        if file:
            (tmp_path / file).write_text(code)
            continue
        command = [sys.executable, "-c", code]
        if language == "bash":
            # `minivllm` as this environment has it, installed or not.
            minivllm = f'minivllm() {{ "{sys.executable}" -m experiments "$@"; }}\nset -e\n'
            command = ["bash", "-c", minivllm + code]
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, f"{code}\n{ran.stdout}\n{ran.stderr}"
