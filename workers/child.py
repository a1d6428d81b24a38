"""The job child: a fresh interpreter that runs one job and exits.

    python -m workers.child FOLDER     run the job in FOLDER; events go to standard output
    python -m workers.child --agent PARENT_PID --events FD --silence SECONDS
                                       import the heavy libraries, then wait on standard input for a line with a FOLDER

With an agent, standard input also carries its sign of life: one byte now and then. A child that hears nothing for
`silence` seconds, or reads end-of-file, kills its process group: its agent is frozen or dead, and somebody else may run
the job.
"""

import argparse
import contextlib
import importlib
import json
import os
import resource
import select
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, NoReturn

from app.core.errors import AimassError, JobError, MemoryExceeded
from app.core.process import die_with_parent
from workers.context import Events, JobContext, Stopped

KINDS = {
    "ingest": "workers.jobs.ingest",
    "train": "workers.jobs.train",
    "compress": "workers.jobs.compress",
    "evaluate": "workers.jobs.evaluate",
    "measure": "workers.jobs.measure",
    "reproduce": "workers.jobs.reproduce",
    "import": "workers.jobs.import_model",
}
# Imported by a waiting child, slowest first, so that the job itself starts at once.
PRELOAD = (
    "torch",
    "lightning.pytorch",
    "sklearn.pipeline",
    "lightgbm",
    "matplotlib.figure",
    "polars",
    "pyarrow.parquet",
    "onnxruntime",
    *KINDS.values(),
)
GIB = 1 << 30


def main() -> None:
    """Run as a job, or wait for one."""
    parser = argparse.ArgumentParser(prog="python -m workers.child", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--agent", type=int)
    parser.add_argument("--events", type=int, default=1)
    parser.add_argument("--silence", type=float, default=30.0)
    parser.add_argument("--preload", action="store_true")
    arguments = parser.parse_args()
    if arguments.folder is not None:
        sys.exit(run_folder(arguments.folder, Events(os.dup(arguments.events))))
    if arguments.agent is None:
        parser.error("give a FOLDER or --agent")
    die_with_parent(arguments.agent, signal.SIGKILL)
    os.set_inheritable(arguments.events, False)  # noqa: FBT003 - the parameter is positional only
    if arguments.preload:
        for module in PRELOAD:
            with contextlib.suppress(ImportError):  # a missing library is the job's error to report, if it needs it
                importlib.import_module(module)
    folder = _read_folder()
    threading.Thread(target=_watch_agent, args=(arguments.silence,), name="watch-agent", daemon=True).start()
    sys.exit(run_folder(folder, Events(arguments.events)))


def _read_folder() -> Path:
    """The first line on standard input that names a folder; end-of-file means that no job will come."""
    line = b""
    while byte := os.read(0, 1):
        if byte == b"\n":
            if line:
                return Path(os.fsdecode(line))
        elif byte != b"\0":  # a sign of life while waiting
            line += byte
    sys.exit(0)


def _watch_agent(silence_s: float) -> NoReturn:
    while True:
        readable, _, _ = select.select([0], [], [], silence_s)
        if not readable or not os.read(0, 4096):
            os.killpg(0, signal.SIGKILL)


def run_folder(folder: Path, events: Events) -> int:
    """Run the job in `folder`; its last event is `result`, `error` or `stopped`. 0 if the job told its end."""
    raw = json.loads((folder / "job.json").read_text())
    job = JobContext(raw["id"], raw["kind"], raw["attempt"], raw["spec"], folder, events)
    signal.signal(signal.SIGTERM, lambda _signal, _frame: job.stop.set())
    _limit(raw["spec"].get("limits", {}))
    os.chdir(folder)
    events.emit("started")
    try:
        result = importlib.import_module(KINDS[job.kind]).run(job)
    except Stopped:
        events.emit("stopped")
    except MemoryError:
        limit_mb = raw["spec"].get("limits", {}).get("memory_mb")
        _fail(
            events,
            MemoryExceeded(f"the job needs more than resources.memory_mb = {limit_mb}; raise it or use less data"),
        )
    except AimassError as error:
        _fail(events, error)
    except Exception as error:  # noqa: BLE001 - whatever went wrong is the job's answer
        job.log(traceback.format_exc(), level="error")
        _fail(events, JobError(f"{type(error).__name__}: {error}"[:2000]))
    else:
        events.emit("result", result=result)
    return 0


def _fail(events: Events, error: AimassError) -> None:
    errors: list[dict[str, Any]] = [{"loc": list(e.loc), "msg": e.msg, "type": e.type} for e in error.errors]
    events.emit("error", code=error.code, detail=error.detail, retryable=error.retryable, errors=errors)


def _limit(limits: dict[str, Any]) -> None:
    """No core dumps; and with a memory limit, allocations far above it fail here, before the agent has to kill.

    RLIMIT_DATA counts private writable memory, reserved or used; libraries reserve more than they use, hence the room.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    memory_mb = limits.get("memory_mb")
    if memory_mb:
        room = memory_mb * (1 << 20) * 2 + 4 * GIB
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (room if hard == resource.RLIM_INFINITY else min(room, hard), hard))


if __name__ == "__main__":
    main()
