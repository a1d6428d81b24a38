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
from workers.context import JobContext
from workers.data.division import Ordered
from workers.data.prepare import Prepared
from workers.evaluation.conformal import offsets, rows_needed
from workers.evaluation.threshold import best_threshold
from workers.export.bounds import bound_tensors, with_bounds, with_scaled_bounds
from workers.families.base import Fitted, HoldsOut
from workers.features.recipe import FittedWithRecipe
from workers.jobs.spread import Spread, check_rows, fit_spread, halves
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
    elif not there:
        there = len(_left_out(prepared))
    by_row, teach = spec.evaluation.interval_width == "by_row", len(prepared.split.validation) - there
    if by_row and not len(prepared.closer.calibration):
        teach = there // 2
        there -= teach
    if there < needed:
        raise _too_few(spec.evaluation.intervals, there)
    if by_row:
        check_rows(teach)


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


def settle(
    job: JobContext, spec: TrainSpec, prepared: Prepared, fitted: Fitted, positive: int, residuals: Array | None
) -> Settled:
    """Tune and calibrate what the spec wants; `residuals` [N] are of rows that folds left out, if there are folds."""
    threshold, told = settle_threshold(spec, prepared, fitted, positive)
    signature = replace(prepared.signature, threshold=threshold)
    coverage, found = spec.evaluation.intervals, None
    if coverage is not None:
        of, rows, residuals = _residuals(prepared, fitted, residuals)
        spread = None
        if spec.evaluation.interval_width == "by_row":
            spread, rows, residuals = _spread(job, spec, prepared, fitted, (rows, residuals))
        if len(residuals) < rows_needed(coverage):  # `auto` may have had time for one fold alone
            raise _too_few(coverage, len(residuals))
        scale = 1.0 if spread is None else spread.scale(take(prepared.inputs, rows))
        ends = offsets(residuals / scale, coverage)
        found = {"coverage": coverage, "below": ends[0], "above": ends[1], "rows": len(residuals), "of": of}
        if spread is not None:
            widths = np.quantile(scale * (ends[1] - ends[0]), [0.1, 0.5, 0.9])
            found |= {"widths_by": spread.facts, "width_quantiles": [float(width) for width in widths]}
        signature = replace(signature, outputs=tuple(bound_tensors(signature.outputs[0])), coverage=coverage)
        fitted = Bounded(fitted, ends, signature, spread)
    return Settled(fitted, signature, {"threshold": told, "prediction_intervals": found})


def _residuals(prepared: Prepared, fitted: Fitted, by_folds: Array | None) -> tuple[str, Array, Array]:
    """Where they are from, positions of rows [N], and true minus predicted [N]."""
    if by_folds is not None:
        return "rows that folds left out", np.concatenate([fold.test for fold in prepared.closer.folds]), by_folds
    y, answers, of = _held_out(prepared, fitted, prepared.closer.calibration)
    rows = prepared.closer.calibration
    return of, rows if len(rows) == len(y) else _left_out(prepared), y - answers


def _left_out(prepared: Prepared) -> Array:
    """Rows that some model of an ensemble leaves out: along time the validation rows, else all but the test rows."""
    split = prepared.split
    if isinstance(prepared.closer.divider, Ordered):
        return split.validation
    return np.concatenate([split.train, split.validation])


def _spread(
    job: JobContext, spec: TrainSpec, prepared: Prepared, fitted: Fitted, found: tuple[Array, Array]
) -> tuple[Spread, Array, Array]:
    """How far off the model is, row by row, and what is left to calibrate by: positions and residuals.

    The rows that stopped the training teach it, and where models left all rows out, half of these do.
    """
    rows, residuals = found
    if len(rows) != len(residuals):
        msg = "auto had time for one fold alone; raise params.time_limit_s, or leave it out"
        raise InvalidSpec.at("evaluation", "interval_width", msg=msg)
    if not len(prepared.closer.calibration):
        teach = halves(prepared, rows, spec.split.seed)
        return fit_spread(job, spec, prepared, rows[teach], residuals[teach]), rows[~teach], residuals[~teach]
    watched = np.setdiff1d(prepared.split.validation, rows)
    errors = prepared.y[watched] - fitted.predict(take(prepared.inputs, watched))
    return fit_spread(job, spec, prepared, watched, errors), rows, residuals


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
    """A regressor whose predictions have intervals, of one width or scaled by `spread`."""

    fitted: Fitted
    offsets: tuple[float, float]
    signature: Signature
    spread: Spread | None = None

    def predict(self, inputs: Inputs) -> Array:
        """Value, lower and upper [N, 3]."""
        value = self.fitted.predict(inputs)
        scale = 1.0 if self.spread is None else self.spread.scale(inputs)
        return np.stack([value, *(value + offset * scale for offset in self.offsets)], axis=1)

    def to_onnx(self) -> onnx.ModelProto:
        """The regressor's graph with two outputs more."""
        if self.spread is None:
            return with_bounds(self.fitted.to_onnx(), self.offsets)
        return with_scaled_bounds(self.fitted.to_onnx(), self.spread.fitted.to_onnx(), self.offsets, self.signature)

    def facts(self) -> dict[str, Any]:
        """Of the regressor."""
        return self.fitted.facts()
