"""What a family sees of the job while it is only tried: a deadline, checkpoints of its own, and nobody who listens."""

import time
from dataclasses import dataclass
from pathlib import Path

from workers.context import JobContext

ROOM = "auto"  # within the job's checkpoint, for models that are finished


@dataclass(slots=True)
class Trial(JobContext):
    """One training among many of a job. It stops when the job does, or at `deadline` of the monotonic clock."""

    name: str = ""
    deadline: float = float("inf")

    @classmethod
    def of(cls, job: JobContext, name: str, deadline: float) -> "Trial":
        """A trial of the job with this name, which is a folder's."""
        return cls(job.id, job.kind, job.attempt, job.spec, job.folder, job.events, job.stop, name, deadline)

    @property
    def checkpoint(self) -> Path:
        """Of this trial alone, and lost with the attempt: the job keeps models that are finished."""
        return self.folder / "trials" / self.name

    def checkpointed(self) -> None:
        """Not told: nothing of a trial is kept."""

    def progress(self, fraction: float, step: str, eta_s: float | None = None) -> None:
        """Not told: the job tells of trials as a whole."""

    def metric(self, name: str, step: int, value: float) -> None:
        """Not told: curves of many trials cannot be told apart."""

    def log(self, message: str, level: str = "info") -> None:
        """Of which model a message is."""
        JobContext.log(self, f"{self.name}: {message}", level)

    def should_stop(self) -> bool:
        """Also when the time is up."""
        return self.stop.is_set() or time.monotonic() >= self.deadline
