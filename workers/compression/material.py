"""What recipes are made from: the model, its rows, and where it comes from."""

from collections.abc import Callable, Mapping
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
from workers.export.runtime import Session, open_session, predict
from workers.learning import Array, Inputs, take

_PART_BYTES = 64 << 20  # of the rows that are read at once


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
    _kept: dict[str, Any] = field(default_factory=dict)  # what was asked for once

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
        return self._asked(open_session(self.model, self.threads), inputs)

    def told(self) -> Array:
        """`answers` to the rows of `learnt`, in their order; asked once, for there may be many."""
        told: Array = self.once("told", lambda: self.answers_to(self.learnt()))
        return told

    def answers_to(self, rows: Array, watch: Callable[[], None] = lambda: None) -> Array:
        """`answers` to rows of the data set, of which few are read at once; `watch` is called between and may raise."""
        session, found = open_session(self.model, self.threads), []
        for part in self.parts(rows):
            watch()
            found.append(self._asked(session, take(self.prepared.inputs, part)))
        return np.concatenate(found)

    def _asked(self, session: Session, inputs: Inputs) -> Array:
        answering = self.judge.answering
        return answering.read(predict(session, inputs, self.batch, answering.output)).astype(np.float64)

    def parts(self, rows: Array) -> list[Array]:
        """Rows of the data set in parts that do not take much memory."""
        width = sum(array[:1].nbytes for array in self.prepared.inputs.values())
        most = max(1, _PART_BYTES // width)
        most -= most % min(most, self.batch)
        return [rows[at : at + most] for at in range(0, len(rows), most)]

    def once(self, name: str, make: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever it makes
        """What `make` gives, made the first time that it is asked for."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def graph(self) -> Model:
        """The full model, to be changed."""
        return onnx.load_from_string(self.model)

    def calibration(self) -> Inputs:
        """Training rows, drawn by the seed."""

        def drawn() -> Inputs:
            rows = np.random.default_rng(self.seed).permutation(self.prepared.split.train)[:CALIBRATION_ROWS]
            return take(self.prepared.inputs, rows)

        found: Inputs = self.once("calibration", drawn)
        return found
