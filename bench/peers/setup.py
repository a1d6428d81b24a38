"""What a run needs and makes once: the models, and an environment a peer; all under one git-ignored folder."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / ".bench"
REQUIREMENTS = Path(__file__).parent / "requirements"
_INSTALL_S = 1200.0
_MODELS_S = 600.0


class SetupFailed(Exception):
    """A peer's packages could not be installed; the message is the installer's last line."""


def models() -> Path:
    """The folder of the models, made if this version of the script has not made them."""
    source = Path(__file__).with_name("models.py")
    folder = WORK / "models"
    if not _stamped(folder, source):
        print("making the models", flush=True)
        command = [sys.executable, "-m", "bench.peers.models", str(folder)]
        log = _log("models")
        with log.open("w") as output:
            subprocess.run(command, check=True, timeout=_MODELS_S, cwd=ROOT, stdout=output, stderr=output)
        _stamp(folder, source)
    return folder


def environment(peer: str) -> Path:
    """The interpreter of a peer's environment, which is installed if it is missing or its requirements have changed."""
    folder, requirements = WORK / "venv" / peer, REQUIREMENTS / f"{peer}.txt"
    python = folder / "bin" / "python"
    if _stamped(folder, requirements):
        return python
    print(f"installing {peer}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    log = _log(f"install-{peer}")
    try:
        with log.open("w") as output:
            for command in (
                [sys.executable, "-m", "venv", str(folder)],
                [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-r", str(requirements)],
            ):
                subprocess.run(command, check=True, timeout=_INSTALL_S, stdout=output, stderr=output)
    except (subprocess.SubprocessError, OSError) as error:
        raise SetupFailed(f"cannot be installed: {last_line(log) or error}") from error
    _stamp(folder, requirements)
    return python


def last_line(log: Path) -> str:
    """The last line that says anything."""
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


def _log(name: str) -> Path:
    folder = WORK / "log"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.log"


def _digest(source: Path) -> str:
    return hashlib.sha256(source.read_bytes()).hexdigest()


def _stamped(folder: Path, source: Path) -> bool:
    stamp = folder / "made-from"
    return stamp.exists() and stamp.read_text() == _digest(source)


def _stamp(folder: Path, source: Path) -> None:
    (folder / "made-from").write_text(_digest(source))
