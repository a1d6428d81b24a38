"""What is settled once a model is trained, by rows that it has not learned from: thresholds, intervals."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from app.core.errors import InvalidInput, InvalidSpec
from app.core.signature import Signature, Threshold
from app.specs.evaluation import TunedThreshold
from app.specs.families import family
from app.specs.jobs import TrainSpec
from workers.data.prepare import Prepared
from workers.evaluation.conformal import offsets, rows_needed
from workers.evaluation.threshold import best_threshold
from workers.export.bounds import bound_tensors, with_bounds
from workers.families.base import Fitted, HoldsOut
from workers.features.recipe import FittedWithRecipe
from workers.learning import Array, Inputs, take


@dataclass(frozen=True, slots=True)
class Settled:
    """The model and the signature with what was settled, and what the card says of it."""

    fitted: Fitted
    signature: Signature
    card: dict[str, Any]


def check_settling(spec: TrainSpec, prepared: Prepared) -> None:
    """InvalidSpec, before anything is trained, for what these rows cannot settle."""
    _check_threshold(spec, prepared)
    if spec.evaluation.intervals is None:
        return
    needed, there = rows_needed(spec.evaluation.intervals), len(prepared.closer.calibration)
    if prepared.closer.folds:
        there = sum(len(fold.test) for fold in prepared.closer.folds)
    elif not there:  # all rows will be left out by some model
        there = len(prepared.split.train) + len(prepared.split.validation)
    if there < needed:
        raise _too_few(spec.evaluation.intervals, there)


def _too_few(coverage: float, there: int) -> InvalidInput:
    msg = (
        f"{coverage:g} takes {rows_needed(coverage)} rows to find intervals by, and there are {there}; raise "
        "split.validation, or ask for evaluation.folds, or for less"
    )
    return InvalidSpec.at("evaluation", "intervals", msg=msg)


def _check_threshold(spec: TrainSpec, prepared: Prepared) -> None:
    if spec.evaluation.threshold is None:
        return
    classes = prepared.signature.classes
    if len(classes) != 2:  # noqa: PLR2004 - two classes
        msg = f"'{spec.target}' has {len(classes)} classes; a threshold tells two apart, so leave it out"
        raise InvalidSpec.at("evaluation", "threshold", msg=msg)
    parts = ("train", "validation") if family(spec.family).holds_out else ("validation",)
    there = np.unique(np.concatenate([prepared.part(part)[1] for part in parts]))
    if isinstance(spec.evaluation.threshold, TunedThreshold) and len(there) < len(classes):
        msg = f"no validation row has the label '{classes[1 - int(there[0])]}'; raise split.validation or name a number"
        raise InvalidSpec.at("evaluation", "threshold", msg=msg)


def settle(spec: TrainSpec, prepared: Prepared, fitted: Fitted, positive: int, residuals: Array | None) -> Settled:
    """Tune and calibrate what the spec wants; `residuals` [N] are of rows that folds left out, if there are folds."""
    threshold, told = settle_threshold(spec, prepared, fitted, positive)
    signature = replace(prepared.signature, threshold=threshold)
    coverage, found = spec.evaluation.intervals, None
    if coverage is not None:
        rows = "rows that folds left out"
        if residuals is None:
            y, answers, rows = _held_out(prepared, fitted, prepared.closer.calibration)
            residuals = y - answers
        if len(residuals) < rows_needed(coverage):  # `auto` may have had time for one fold alone
            raise _too_few(coverage, len(residuals))
        below, above = offsets(residuals, coverage)
        found = {"coverage": coverage, "below": below, "above": above, "rows": len(residuals), "of": rows}
        fitted = Bounded(fitted, (below, above))
        signature = replace(signature, outputs=tuple(bound_tensors(signature.outputs[0])), coverage=coverage)
    return Settled(fitted, signature, {"threshold": told, "prediction_intervals": found})


def settle_threshold(
    spec: TrainSpec, prepared: Prepared, fitted: Fitted, positive: int
) -> tuple[Threshold | None, dict[str, Any] | None]:
    """The threshold, tuned if the spec says so, and what the card says of it."""
    asked = spec.evaluation.threshold
    if asked is None:
        return None, None
    label, tuned = prepared.signature.classes[positive], None
    if isinstance(asked, TunedThreshold):
        y, answers, of = _held_out(prepared, fitted, prepared.split.validation)
        probability, reached, usual = best_threshold(y == positive, answers[:, positive], asked.maximize)
        tuned = {"maximizes": asked.maximize, "reached": reached, "at_half": usual, "rows": len(y), "of": of}
    else:
        probability = asked
    return Threshold(label, probability), {"label": label, "probability": probability, "tuned": tuned}


def _held_out(prepared: Prepared, fitted: Fitted, rows: Array) -> tuple[Array, Array, str]:
    """Targets and answers of rows that it has not learned from: its own, else these of the validation rows."""
    own = fitted.fitted if isinstance(fitted, FittedWithRecipe) else fitted
    if isinstance(own, HoldsOut):
        return *own.held_out(), "rows that its models left out"
    return prepared.y[rows], fitted.predict(take(prepared.inputs, rows)), "validation rows"


@dataclass(frozen=True, slots=True)
class Bounded:
    """A regressor whose predictions have intervals."""

    fitted: Fitted
    offsets: tuple[float, float]

    def predict(self, inputs: Inputs) -> Array:
        """Value, lower and upper [N, 3]."""
        value = self.fitted.predict(inputs)
        return np.stack([value, *(value + offset for offset in self.offsets)], axis=1)

    def to_onnx(self) -> onnx.ModelProto:
        """The regressor's graph with two outputs more."""
        return with_bounds(self.fitted.to_onnx(), self.offsets)

    def facts(self) -> dict[str, Any]:
        """Of the regressor."""
        return self.fitted.facts()
