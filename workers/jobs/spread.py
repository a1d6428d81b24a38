"""How far off a regressor usually is, row by row: a second model, of its residuals, by which intervals are scaled.

Normalised conformal prediction (Papadopoulos and others 2008): what is promised holds, however good that model is, as
long as the rows that calibrate are neither those that it nor those that the regressor learned from.
"""

import shutil
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from app.core.errors import InvalidSpec
from app.specs.families import family
from app.specs.jobs import TrainSpec
from app.specs.training import TrainingSpec
from workers.context import FitContext, JobContext
from workers.data.prepare import Closer, Prepared
from workers.data.splits import Split
from workers.families.base import Fitted
from workers.features.recipe import learner_of
from workers.host import job_threads
from workers.learning import Array, Inputs

_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "tabular": ("gbdt", {"n_estimators": 300, "num_leaves": 8}), "text": ("text_linear", {"max_features": 20_000}),
}  # fmt: skip
_LEAST = 40  # rows, of which a model of residuals can be learned
_FLOOR = 0.1  # quantile of the sizes of residuals; smaller ones are taken for it, as logarithms have no end
_WATCHED = 0.2  # share of the rows that stop the training early


class _Aside(FitContext):
    """A fit that takes a second or two, of which the job's progress says nothing."""

    def progress(self, fraction: float, step: str, eta_s: float | None = None) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A model of the logarithm of a residual's size, and the rows that are left to calibrate by."""

    fitted: Fitted
    facts: dict[str, Any]

    def scale(self, inputs: Inputs) -> Array:
        """The usual size of the residual of each row, [N], above zero."""
        return np.exp(self.fitted.predict(inputs))


def check_rows(count: int) -> None:
    """InvalidSpec: `count` rows are too few to learn widths from."""
    if count < _LEAST:
        msg = f"there are {count} rows to learn widths from, and it takes {_LEAST}; raise split.validation, ask for"
        raise InvalidSpec.at("evaluation", "interval_width", msg=f"{msg} evaluation.folds, or leave it out")


def halves(prepared: Prepared, rows: Array, seed: int) -> Array:
    """True for a random half of `rows` [N]; rows of one group are in one half."""
    groups = prepared.closer.groups
    keys, places = np.unique(rows if groups is None else groups[rows], return_inverse=True)
    drawn = np.random.default_rng(seed).permutation(len(keys)) < len(keys) // 2
    return np.asarray(drawn[places.ravel()], np.bool_)


def fit_spread(job: JobContext, spec: TrainSpec, prepared: Prepared, rows: Array, residuals: Array) -> Spread:
    """Learn how large `residuals` [N] of the positions `rows` [N] are, from the columns that the regressor reads."""
    sizes = np.abs(residuals)
    floor = max(float(np.quantile(sizes, _FLOOR)), float(np.finfo(np.float32).tiny))
    y = np.zeros(len(prepared.y))
    y[rows] = np.log(np.maximum(sizes, floor))
    order = np.random.default_rng(spec.split.seed).permutation(rows)
    watched = max(1, round(_WATCHED * len(rows)))
    split = Split(np.sort(order[watched:]), np.sort(order[:watched]), np.zeros(0, np.int64), "random")
    name, params = _FAMILIES[family(spec.family).data]
    params = family(name).validate(params).model_dump(mode="json")
    own = spec.model_copy(
        update={"family": name, "params": params, "training": TrainingSpec(seed=spec.training.seed), "metrics": []}
    )
    asked = replace(prepared, y=y, split=split, closer=Closer())
    context = _Aside(job, 1, 1, "widths of intervals")
    learner = learner_of(own)
    fitted = learner.fit(asked.learning(own, job_threads(job), "cpu"), context)
    shutil.rmtree(context.folder, ignore_errors=True)
    return Spread(fitted, {"family": name, "rows": len(rows)})
