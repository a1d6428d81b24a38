"""What an ingest found on its way: warnings, and rows that it could not take."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from app.core.errors import InvalidData, InvalidInput
from app.settings import LimitSettings
from app.specs.data import RejectedRow

MAX_LISTED = 20
MAX_WARNINGS = 200
MAX_TEXT = 300

Tick = Callable[[float, str], None]
"""Reports progress (0..1 of the step, what is done); raises when the job should stop."""


def unreadable(msg: str) -> InvalidInput:
    """InvalidData on the uploaded file."""
    return InvalidData.at("file", msg=msg)


def limits_from(given: Mapping[str, Any]) -> LimitSettings:
    """The agent's limits; defaults where it says nothing. The environment of the job child is not looked at."""
    defaults = {name: f.default for name, f in LimitSettings.model_fields.items()}
    return LimitSettings.model_construct(None, **{**defaults, **given})


def shorten(text: str, width: int = MAX_TEXT) -> str:
    """At most `width` characters and no NUL, so that a hostile cell can neither fill nor break a report."""
    text = text.replace("\0", "\N{SYMBOL FOR NULL}")
    return text if len(text) <= width else text[: width - 1] + "…"


def listed(values: list[str], most: int = 5) -> str:
    """The first few values, quoted, and how many more there are."""
    shown = ", ".join(f"'{shorten(v, 40)}'" for v in values[:most])
    return shown if len(values) <= most else f"{shown} and {len(values) - most} more"


@dataclass(slots=True)
class Findings:
    """Collects what a person has to know about the upload; bounded, whatever the upload holds."""

    rejected_count: int = 0
    rejected_first: list[RejectedRow] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    _warnings: list[str] = field(default_factory=list)
    _unlisted: int = 0

    def warn(self, message: str) -> None:
        """Say something that may need an answer."""
        if len(self._warnings) < MAX_WARNINGS:
            self._warnings.append(shorten(message, 1000))
        else:
            self._unlisted += 1

    def reject(self, reason: str, *, line: int | None = None, path: str | None = None) -> None:
        """Count a line (1-based in the original file) or an archive member that is left out; the first are listed."""
        self.rejected_count += 1
        if len(self.rejected_first) < MAX_LISTED:
            row = RejectedRow(line=line, reason=shorten(reason), path=None if path is None else shorten(path))
            self.rejected_first.append(row)

    def first_rejection(self) -> str:
        """The first rejected row in words, for an error message; empty without one."""
        if not self.rejected_first:
            return ""
        first = self.rejected_first[0]
        where = f"line {first.line}" if first.line is not None else f"'{first.path}'"
        return f"{where}: {first.reason}"

    @property
    def warnings(self) -> list[str]:
        """Every warning, or the first MAX_WARNINGS and a count."""
        return [*self._warnings, f"and {self._unlisted} more warnings"] if self._unlisted else list(self._warnings)
