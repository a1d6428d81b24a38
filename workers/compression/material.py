"""What recipes are made from: the model, its rows, and where it comes from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from app.specs.families import family
from app.specs.training import TrainingSpec
from workers.compression.graphs import Model
from workers.compression.int8 import CALIBRATION_ROWS
from workers.context import JobContext
from workers.data.prepare import Prepared
from workers.evaluation.judge import Judge
from workers.export.runtime import open_session, predict
from workers.learning import Array, Inputs, take


@dataclass(frozen=True, slots=True)
class Origin:
    """How a model that was trained here was trained; nothing is known of an imported one."""

    family: str
    params: Mapping[str, Any]
    training: TrainingSpec
    seconds: float = 0.0  # that it took

    @property
    def knows_validation(self) -> bool:
        """Whether validation rows were learnt from too, as `auto` does; they judge such a model too well."""
        return family(self.family).holds_out


@dataclass(frozen=True, slots=True)
class Material:
    """Everything that a step of a recipe may look at. `judge` has the rows that decide."""

    model: bytes
    prepared: Prepared
    judge: Judge
    seed: int
    folder: Path  # for files of this run
    origin: Origin | None = None
    job: JobContext | None = None
    _told: list[Array] = field(default_factory=list)  # answers to what it has learnt from, once they are asked for

    @property
    def threads(self) -> int:
        """Of sessions."""
        return self.judge.threads

    @property
    def batch(self) -> int:
        """Most rows of a run."""
        return self.judge.answering.batch

    def learnt(self) -> Array:
        """Rows that the model has learnt from, in an order drawn by the seed."""
        split = self.prepared.split
        rows = split.train
        if self.origin is not None and self.origin.knows_validation:
            rows = np.concatenate([split.train, split.validation])
        return np.random.default_rng(self.seed).permutation(rows)

    def answers(self, inputs: Inputs) -> Array:
        """What the full model says to these rows: probabilities [N, K] or values [N], FP64."""
        session, answering = open_session(self.model, self.threads), self.judge.answering
        return answering.read(predict(session, inputs, self.batch, answering.output)).astype(np.float64)

    def told(self) -> Array:
        """`answers` to the rows of `learnt`, in their order; asked once, for there may be many."""
        if not self._told:
            self._told.append(self.answers(take(self.prepared.inputs, self.learnt())))
        return self._told[0]

    def graph(self) -> Model:
        """The full model, to be changed."""
        return onnx.load_from_string(self.model)

    def calibration(self) -> Inputs:
        """Training rows, drawn by the seed."""
        rows = np.random.default_rng(self.seed).permutation(self.prepared.split.train)[:CALIBRATION_ROWS]
        return take(self.prepared.inputs, rows)
