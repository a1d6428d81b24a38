"""The pipe between agent and child: JSON lines, one event each, bounded in length."""

import json
from dataclasses import dataclass
from typing import Any

from workers.context import EVENT_VERSION

MAX_LINE_BYTES = 8 << 20
EVENTS = frozenset({"started", "progress", "metric", "log", "checkpoint", "result", "error", "stopped"})


@dataclass(frozen=True, slots=True)
class ChildEvent:
    """What a child told."""

    event: str
    at: float
    data: dict[str, Any]


def parse_event(line: bytes) -> ChildEvent | None:
    """The event in a line, or None if it is none: a library that writes to the pipe must not end the job."""
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(raw, dict) or raw.pop("v", None) != EVENT_VERSION:
        return None
    event, at = raw.pop("event", None), raw.pop("at", None)
    if event not in EVENTS or not isinstance(at, (int, float)):
        return None
    return ChildEvent(event, float(at), raw)
