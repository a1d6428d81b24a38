"""What is told of an answered request; `tracing` makes spans of it, where that is configured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

Attributes = Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class Request:
    """An answered request: `trace`, `span` and `parent` are hexadecimal ids, `seconds` is how long it took."""

    name: str
    trace: str
    span: str
    parent: str | None
    seconds: float
    attributes: Attributes
    failed: bool = False
    phases: Sequence[tuple[str, float]] = ()  # one after the other, in seconds


class Exporter(Protocol):
    """Where answered requests go."""

    def sample(self) -> bool:
        """Whether a trace that begins here is to be exported; one that the caller began says so itself."""
        ...

    def export(self, request: Request) -> None:
        """Take a request; must not wait."""
        ...

    def close(self) -> None:
        """Send what was taken; may wait."""
        ...
