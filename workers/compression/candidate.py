"""A recipe with everything that was measured of it."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from workers.compression.recipes import Recipe, Step, key_of
from workers.training.files import write_atomically

GAIN = 1.05  # smaller or faster by this factor, or it is not worth a file
_FILE = "compression.json"


@dataclass(frozen=True, slots=True)
class Candidate:
    """`stops` says what keeps it out of the budget, `failed` why it could not be made.

    `loss` has the metric, what was measured, its upper end and what is allowed; `excess` is 0 within the budget and
    grows with the distance to it. `speed_up` compares rows a second with those of the full model, `quicker` one row.
    """

    recipe: list[Step]
    bytes: int = 0
    sha256: str = ""
    loss: dict[str, Any] = field(default_factory=dict)
    latency: dict[str, Any] = field(default_factory=dict)
    smaller: float = 0.0
    speed_up: float = 0.0
    quicker: float = 0.0
    excess: float = 0.0
    stops: list[str] = field(default_factory=list)
    failed: str | None = None

    @property
    def within(self) -> bool:
        """It holds the budget."""
        return self.failed is None and not self.stops

    @property
    def better(self) -> bool:
        """Than the full model: in size, or in rows a second and not slower for one row."""
        return self.smaller >= GAIN or (self.speed_up >= GAIN and self.quicker >= 1 / GAIN)

    @property
    def accepted(self) -> bool:
        """Worth a file."""
        return self.within and self.better

    @property
    def reason(self) -> str | None:
        """Why it is not accepted."""
        if self.failed:
            return self.failed
        if self.stops:
            return "; ".join(self.stops)
        if self.better:
            return None
        return (
            f"not better: {self.smaller:.2f} times smaller, {self.speed_up:.2f} times the rows a second, "
            f"{self.quicker:.2f} times as quick for one row; it takes {GAIN:g} in size, or in rows a second and not "
            "slower for one row"
        )

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(slots=True)
class Notebook:
    """Candidates that were measured, kept in a job's checkpoint so that a later attempt does not measure them again.

    What was measured on another host, or of another model, does not count there.
    """

    path: Path | None
    host: str
    model: str  # digest
    spent_s: float = 0.0
    _known: dict[str, Candidate] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path | None, host: str, model: str) -> Self:
        """The notebook in a checkpoint's folder; without one it is kept in memory alone."""
        book = cls(folder and folder / _FILE, host, model)
        if book.path is not None and book.path.exists():
            raw = json.loads(book.path.read_text(encoding="utf-8"))
            if (raw["host"], raw["model"]) == (host, model):
                book.spent_s = raw["spent_s"]
                book._known = {key_of(one["recipe"]): Candidate(**one) for one in raw["candidates"]}
        return book

    def __len__(self) -> int:
        return len(self._known)

    def find(self, recipe: Recipe) -> Candidate | None:
        """What an earlier measurement has found."""
        return self._known.get(key_of(recipe))

    def add(self, candidate: Candidate, spent_s: float) -> None:
        """Keep it, and what the search has taken until now."""
        self._known[key_of(candidate.recipe)] = candidate
        self.spent_s = spent_s
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            raw = {
                "host": self.host, "model": self.model, "spent_s": spent_s,
                "candidates": [one.to_json() for one in self.all()],
            }  # fmt: skip
            write_atomically(self.path, json.dumps(raw, allow_nan=False).encode())

    def all(self) -> list[Candidate]:
        """In the order in which they were measured."""
        return list(self._known.values())
