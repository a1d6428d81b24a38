"""The README's walk-through, run as it stands."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.platform import KEY, Platform

ROOT = Path(__file__).resolve().parents[2]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_walk_through_works_as_written(tmp_path: Path) -> None:
    (tmp_path / ".venv").symlink_to(sys.prefix)
    [shell], [python] = blocks("bash"), blocks("python")
    assert len(shell.splitlines()) <= 20
    with Platform() as platform:
        environment = {**os.environ, "URL": str(platform.url), "KEY": KEY}
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", shell],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "event: progress" in done.stdout
        assert '"state":"accepted"' in done.stdout
        done = subprocess.run(
            [sys.executable, "-c", python],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "is right" in done.stdout
    assert "probabilities" in done.stdout
