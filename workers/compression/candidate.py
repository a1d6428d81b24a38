"""A recipe with everything that was measured of it."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from workers.compression.recipes import TRAINED, Recipe, Step, key_of
from workers.training.files import write_atomically

GAIN = 1.05  # smaller or faster by this factor, or it is not worth a file
_LOSS_STEP = 0.1  # of the allowed loss: less is no difference
_FILE = "compression.json"
_ENDED = 2  # attempts, after which a recipe is held to end every process


@dataclass(frozen=True, slots=True)
class Candidate:
    """`stops` says what keeps it out of the budget, `failed` why it could not be made.

    `loss` has the metric, what was measured, its upper end and what is allowed; `excess` is 0 within the budget and
    grows with the distance to it. `speed_up` compares rows a second with those of the full model, `quicker` one row.
    What is kept was measured twice, since the best of many measurements is the luckiest too: the second counts, and
    `first` has the speeds of the first.
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
    first: dict[str, Any] = field(default_factory=dict)

    @property
    def trained(self) -> bool:
        """Something has to learn before it is there."""
        return is_trained(self.recipe)

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
        again = "measured again, it is " if self.first else ""
        return (
            f"{again}not better: {self.smaller:.2f} times smaller, {self.speed_up:.2f} times the rows a second, "
            f"{self.quicker:.2f} times as quick for one row; it takes {GAIN:g} in size, or in rows a second and not "
            "slower for one row"
        )

    def covers(self, other: Self) -> bool:
        """As good as the other in everything, but for differences that measurements are not sure of."""
        return self._lost <= max(other._lost, 0.0) + _LOSS_STEP and all(
            getattr(self, name) * GAIN >= getattr(other, name) for name in ("smaller", "speed_up", "quicker")
        )

    @property
    def _lost(self) -> float:
        """The share of what is allowed, since two candidates may lose most of different metrics."""
        measured, allowed = self.loss["measured"], self.loss["allowed"]
        return float(measured / allowed) if allowed else (float("inf") if measured > 0 else 0.0)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def is_trained(recipe: Recipe) -> bool:
    """One of its steps is a training, which takes longer than everything else."""
    return any(step["step"] in TRAINED for step in recipe)


@dataclass(slots=True)
class Notebook:
    """Candidates that were measured, kept in a job's checkpoint so that a later attempt does not measure them again.

    What was measured on another host, or of another model, does not count there. `searched` says that a search is
    over, and what is left is to measure a second time what it wants to keep. `changes` says how much the quantization
    of each layer alone changes answers, by the recipe that quantizes them all. `begun` counts the attempts at what is
    being made, for one that ends the process would end every attempt of the job.
    """

    path: Path | None
    host: str
    model: str  # digest
    spent_s: float = 0.0
    searched: bool = False
    changes: dict[str, dict[str, float]] = field(default_factory=dict)
    begun: dict[str, int] = field(default_factory=dict)
    _known: dict[str, Candidate] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path | None, host: str, model: str) -> Self:
        """The notebook in a checkpoint's folder; without one it is kept in memory alone."""
        book = cls(folder and folder / _FILE, host, model)
        if book.path is not None and book.path.exists():
            raw = json.loads(book.path.read_text(encoding="utf-8"))
            if (raw["host"], raw["model"]) == (host, model):
                book.spent_s, book.searched = raw["spent_s"], raw.get("searched", False)
                book.changes, book.begun = raw.get("changes", {}), raw.get("begun", {})
                book._known = {key_of(one["recipe"]): Candidate(**one) for one in raw["candidates"]}
        return book

    def __len__(self) -> int:
        return len(self._known)

    def find(self, recipe: Recipe) -> Candidate | None:
        """What an earlier measurement has found."""
        return self._known.get(key_of(recipe))

    def add(self, candidate: Candidate, spent_s: float) -> None:
        """Keep it, in the place of what was known of the recipe, and what the search has taken until now."""
        self._known[key_of(candidate.recipe)] = candidate
        self.begun.clear()
        self.save(spent_s)

    def begin(self, recipe: Recipe, spent_s: float) -> bool:
        """Write down that this one is about to be made; False if the process ended twice while it was."""
        key = key_of(recipe)
        if self.begun.get(key, 0) >= _ENDED:
            return False
        self.begun = {key: self.begun.get(key, 0) + 1}
        self.save(spent_s)
        return True

    def leave(self, spent_s: float) -> None:
        """What was begun is not the reason why the process ends."""
        self.begun.clear()
        self.save(spent_s)

    def changes_of(self, recipe: Recipe) -> dict[str, float]:
        """By layer, of this recipe; to be added to."""
        return self.changes.setdefault(key_of(recipe), {})

    def close(self, spent_s: float) -> None:
        """Nothing more is searched for, by a later attempt neither."""
        self.searched = True
        self.save(spent_s)

    def save(self, spent_s: float) -> None:
        """Write it down."""
        self.spent_s = spent_s
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            raw = {
                "host": self.host, "model": self.model, "spent_s": spent_s, "searched": self.searched,
                "changes": self.changes, "begun": self.begun, "candidates": [one.to_json() for one in self.all()],
            }  # fmt: skip
            write_atomically(self.path, json.dumps(raw, allow_nan=False).encode())

    def all(self) -> list[Candidate]:
        """In the order in which they were measured."""
        return list(self._known.values())
