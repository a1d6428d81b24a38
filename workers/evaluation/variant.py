"""One file of a model version with what was measured of it."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from workers.evaluation.latency import Latency, compare_latency
from workers.evaluation.metrics import evaluate
from workers.export.runtime import open_session, predict
from workers.learning import Array, Inputs


@dataclass(frozen=True, slots=True)
class Judge:
    """Held-out rows and how to judge a model by them."""

    task: Literal["classification", "regression"]
    inputs: Inputs
    y: Array
    positive: int
    threads: int

    def answers(self, model: bytes) -> Array:
        """What a serialised model says to these rows."""
        return predict(open_session(model, self.threads), self.inputs)

    def score(self, answers: Array, rows: Array | slice = slice(None)) -> dict[str, float]:
        """Every metric of the answers, or of the chosen ones."""
        return evaluate(self.task, self.y[rows], answers[rows], positive=self.positive)

    def metrics(self, model: bytes) -> dict[str, float]:
        """Every metric of a serialised model on these rows."""
        return self.score(self.answers(model))

    def latency(self, *models: bytes) -> list[Latency]:
        """How fast each is here, measured in turns."""
        return compare_latency(models, self.inputs, self.threads)


@dataclass(frozen=True, slots=True)
class Variant:
    """As the API shows it. `path` is inside the version's folder, None when the file was not kept."""

    name: str
    state: Literal["accepted", "rejected"]
    recipe: dict[str, Any]
    path: str | None
    bytes: int
    metrics: dict[str, float] = field(default_factory=dict)
    latency: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)
