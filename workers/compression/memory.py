"""How much memory a model takes: the peak of a process of its own that loads it and runs a batch.

    python -m workers.compression.memory MODEL ROWS THREADS

prints bytes above what the process held before.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np

from workers.export.runtime import open_session
from workers.learning import Inputs

_LIMIT_S = 120.0


def peak_bytes(model: Path, inputs: Inputs, threads: int, folder: Path) -> int | None:
    """Of a model's file and a batch of rows; None where it could not be measured."""
    rows = folder / "rows.npz"
    np.savez(rows, allow_pickle=False, **{n: v.astype(np.str_) if v.dtype == object else v for n, v in inputs.items()})
    command = [sys.executable, "-m", __name__, str(model), str(rows), str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_LIMIT_S, check=True)  # noqa: S603 - our own module
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    return int(done.stdout)


def _status(name: str) -> int:
    """Bytes of this process by the kernel; `getrusage` would count what the parent held when it forked."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def _main(model: str, rows: str, threads: str) -> None:
    with np.load(rows, allow_pickle=False) as file:
        inputs = {
            name: file[name].astype(object) if file[name].dtype.kind == "U" else file[name] for name in file.files
        }
    before = _status("VmRSS")
    open_session(model, int(threads)).run(None, inputs)
    sys.stdout.write(str(_status("VmHWM") - before))


if __name__ == "__main__":
    _main(*sys.argv[1:])
