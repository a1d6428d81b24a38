"""What a running job sees: its spec, its folders, and a pipe for events. Nothing else of the platform.

A job folder holds

    job.json      {"version": 1, "id", "kind", "attempt", "spec", "limits"}
    input/        read-only inputs, laid out by the agent
    output/       what the job makes; becomes real only when the attempt finishes
    checkpoint/   what a later attempt may resume from

so that a job can be run by hand: `python -m workers.child FOLDER` prints its events to standard output.
"""

import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EVENT_VERSION = 1


@dataclass(slots=True)
class Events:
    """Writes one JSON object a line to a file descriptor; safe to use from several threads."""

    fd: int
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def emit(self, event: str, **data: Any) -> None:  # noqa: ANN401 - any JSON value
        """Send one event with the wall-clock time in seconds."""
        line = json.dumps({"v": EVENT_VERSION, "event": event, "at": time.time(), **data}, allow_nan=False) + "\n"
        raw = memoryview(line.encode())
        with self._lock:
            while raw:
                raw = raw[os.write(self.fd, raw) :]


@dataclass(slots=True)
class JobContext:
    """Handed to a job's `run(job)`, which returns its JSON result."""

    id: str
    kind: str
    attempt: int
    spec: Mapping[str, Any]
    folder: Path
    events: Events
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def input(self) -> Path:
        """Read-only inputs."""
        return self.folder / "input"

    @property
    def output(self) -> Path:
        """Files that become real when the job finishes."""
        return self.folder / "output"

    @property
    def checkpoint(self) -> Path:
        """Files that survive this attempt, once `checkpointed` was called."""
        return self.folder / "checkpoint"

    def progress(self, fraction: float, step: str, eta_s: float | None = None) -> None:
        """Tell how far the job is: `fraction` in 0..1, a short present-tense `step`, seconds left if known."""
        self.events.emit("progress", fraction=round(min(max(fraction, 0.0), 1.0), 4), step=step, eta_s=eta_s)

    def metric(self, name: str, step: int, value: float) -> None:
        """One point of a live curve; values that are not finite are left out, since JSON has none."""
        if value == value and abs(value) != float("inf"):  # noqa: PLR0124 - NaN test without numpy
            self.events.emit("metric", name=name, step=step, value=float(value))

    def log(self, message: str, level: str = "info") -> None:
        """One line for the job's log."""
        self.events.emit("log", level=level, message=message)

    def checkpointed(self) -> None:
        """Say that `checkpoint/` holds a complete state; the agent stores it for a later attempt.

        Files in `checkpoint/` must be replaced atomically (write aside, rename), never edited in place.
        """
        self.events.emit("checkpoint")

    def should_stop(self) -> bool:
        """True after SIGTERM: write a checkpoint, call `checkpointed`, and return soon."""
        return self.stop.is_set()


_FIT_BEGINS, _FIT_ENDS = 0.1, 0.82  # the span of a job's progress in which a family tells its own


class FitContext(JobContext):
    """A job as one of its fits sees it: fit `index` of `count`, which share the span of progress that one would have.

    The main fit has no `name`. It resumes from the job's checkpoint, and its live metrics are the job's; `points` keeps
    them. Any other has a folder of its own, so that its checkpoints are never taken for those of another fit; they are
    not kept.
    """

    def __init__(self, job: JobContext, index: int = 0, count: int = 1, name: str = "") -> None:
        folder = job.folder / "fits" / str(index) if name else job.folder
        super().__init__(job.id, job.kind, job.attempt, job.spec, folder, job.events, job.stop)
        self.job, self.index, self.count, self.name = job, index, count, name
        self.points: dict[str, list[tuple[int, float]]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def progress(self, fraction: float, step: str, eta_s: float | None = None) -> None:
        """As far as this fit brings the job; the time left is known if there is no other fit."""
        done = min(max((fraction - _FIT_BEGINS) / (_FIT_ENDS - _FIT_BEGINS), 0.0), 1.0)
        whole = _FIT_BEGINS + (_FIT_ENDS - _FIT_BEGINS) * (self.index + done) / self.count
        step = f"{self.name}: {step}" if self.name else step
        self.job.progress(whole, step, eta_s if self.count == 1 else None)

    def metric(self, name: str, step: int, value: float) -> None:
        """Of the main fit only."""
        if not self.name:
            self.job.metric(name, step, value)
            self.points.setdefault(name, []).append((step, float(value)))

    def log(self, message: str, level: str = "info") -> None:
        """Under the fit's name."""
        self.job.log(f"{self.name}: {message}" if self.name else message, level)

    def checkpointed(self) -> None:
        """Of the main fit only."""
        if not self.name:
            self.job.checkpointed()

    def should_stop(self) -> bool:
        """As the job."""
        return self.job.should_stop()


class Stopped(Exception):
    """Raised by a job that stopped early because `should_stop()` became true."""
