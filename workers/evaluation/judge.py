"""Held-out rows, and what they say of a model."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import numpy as np

from app.core.signature import Task
from workers.evaluation.answers import Answering
from workers.evaluation.device import CPU
from workers.evaluation.latency import Latency, compare_latency, usual_batch
from workers.evaluation.metrics import evaluate
from workers.export.runtime import open_session, predict
from workers.learning import Array, Inputs, Rule, take


@dataclass(frozen=True, slots=True)
class Judge:
    """Held-out rows and how to judge a model by them; rows of one of `groups` [N] depend on each other.

    `device` is where models run: see `workers.evaluation.device`.
    """

    task: Task
    inputs: Inputs
    y: Array
    rule: Rule
    threads: int
    answering: Answering = field(default_factory=Answering)
    groups: Array | None = None
    device: str = CPU

    def of(self, rows: Array) -> "Judge":
        """By some of the rows, bool [N]."""
        some = np.flatnonzero(rows)
        groups = None if self.groups is None else self.groups[some]
        return replace(self, inputs=take(self.inputs, some), y=self.y[some], groups=groups)

    def dealt(self, hands: int, seed: int) -> Array:
        """A number below `hands` for each row [N], of each as often; one for all rows of a group, if there are two."""
        rng = np.random.default_rng(seed)
        if self.groups is None or len(there := np.unique(self.groups)) < 2:  # noqa: PLR2004 - one is not divided
            return rng.permutation(len(self.y)) % hands
        return np.asarray((rng.permutation(len(there)) % hands)[np.searchsorted(there, self.groups)])

    def answers(self, model: bytes | str) -> Array:
        """What a serialised model, or the one at a path, says to these rows: probabilities [N, K] or values [N]."""
        session = open_session(model, self.threads, self.device)
        return self.answering.read(predict(session, self.inputs, self.answering.batch, self.answering.output))

    def score(
        self, answers: Array, rows: Array | slice = slice(None), names: Collection[str] | None = None
    ) -> dict[str, float]:
        """Every metric of the answers, or of the chosen ones; or those in `names`."""
        return evaluate(self.task, self.y[rows], answers[rows], rule=self.rule, names=names)

    def metrics(self, model: bytes) -> dict[str, float]:
        """Every metric of a serialised model on these rows."""
        return self.score(self.answers(model))

    def latency(self, *models: bytes, rounds: int = 3) -> list[Latency]:
        """How fast each is here, measured in turns."""
        batch = min(usual_batch(self.inputs), self.answering.batch)
        return compare_latency(models, self.inputs, self.threads, batch, rounds, self.device)
