"""What a job's child has told and the registry does not know yet."""

import logging
from dataclasses import dataclass, field
from typing import Any

from app.core.jobs import MetricPoint, Progress
from workers.protocol import ChildEvent

log = logging.getLogger("aimass.job")


@dataclass(slots=True)
class Told:
    """The newest progress, and every point and line in order."""

    progress: Progress | None = None
    points: list[MetricPoint] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)
    checkpoint: bool = False

    def note(self, event: ChildEvent, attempt: int) -> None:
        """Keep what the registry is to know of an event that is not the job's end."""
        data = event.data
        match event.event:
            case "progress":
                self.progress = Progress(float(data["fraction"]), str(data["step"]), data.get("eta_s"))
            case "metric":
                name = str(data["name"])[:100]
                self.points.append(MetricPoint(name, int(data["step"]), float(data["value"]), event.at))
            case "log":
                line = {"level": str(data.get("level")), "message": str(data.get("message"))[:10_000]}
                self.log.append(line | {"at": event.at})
            case "started":
                self.log.append({"level": "info", "message": f"attempt {attempt} has started", "at": event.at})
            case "checkpoint":
                self.checkpoint = True
            case _:
                log.debug("passed over: %s", event.event)

    def split(self, rows: int) -> tuple["Told", "Told"]:
        """What is passed on first, with so many points and lines at most; and what is left."""
        first = Told(self.progress, self.points[:rows], self.log[:rows], self.checkpoint)
        return first, Told(points=self.points[rows:], log=self.log[rows:])

    def add(self, newer: "Told") -> None:
        """Take in what was told while this could not be passed on."""
        self.progress = newer.progress or self.progress
        self.points += newer.points
        self.log += newer.log
        self.checkpoint |= newer.checkpoint
