"""Folds are nested: nothing that a fold tunes, chooses or stops by has seen the rows that it is judged by."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from app.specs.jobs import TrainSpec
from workers.context import FitContext
from workers.data.prepare import Prepared, prepare
from workers.jobs.refits import Refits
from workers.learning import Array

MakeJob = Callable[..., Any]
STEPS = [
    {"step": "impute"},
    {"step": "aggregate", "by": "city", "column": "age", "functions": ["mean", "std"]},
    {"step": "target_encode", "columns": ["city"]},
    {"step": "scale"},
]


def spoiled(prepared: Prepared, rows: Array) -> Prepared:
    """The same with other values, unseen categories and the other target in these rows."""
    inputs = {name: values.copy() for name, values in prepared.inputs.items()}
    inputs["numeric"][rows] = 1e6
    inputs["categorical"][rows] = "Atlantis"
    y = prepared.y.copy()
    y[rows] = 1 - y[rows]
    return replace(prepared, inputs=inputs, y=y)


@pytest.mark.parametrize(
    ("family", "params", "training"),
    [
        ("gbdt", {"n_estimators": 60}, {"early_stopping": {"patience": 3}}),
        ("mlp", {}, {"epochs": 3, "early_stopping": {"patience": 1}}),
        ("auto", {"time_limit_s": 60, "folds": 2, "families": ["linear", "naive_bayes"]}, {}),
    ],
)
def test_a_fold_is_fitted_without_the_rows_that_it_is_judged_by(
    make_job: MakeJob, mixed: pl.DataFrame, family: str, params: dict[str, Any], training: dict[str, Any]
) -> None:
    job = make_job(
        mixed[:600].drop("amount"), family=family, params=params, training=training, features={"steps": STEPS},
        clean=[{"step": "drop_outliers", "columns": ["age"]}],
        evaluation={"folds": 3, "threshold": {"maximize": "f1"}},
    )  # fmt: skip
    spec = TrainSpec.model_validate(job.spec).check_family()
    prepared = prepare(job, spec)
    [fold, *_] = prepared.closer.folds
    assert not np.intersect1d(fold.test, np.concatenate([fold.train, fold.validation])).size

    def fitted(rows: Array) -> dict[str, Any]:
        refits = Refits(job, spec, spoiled(prepared, rows), 1, 1, "cpu")
        found: dict[str, Any] = refits._fit(FitContext(job, 0, 1, "fold 1"), fold)
        return found

    unseen = np.concatenate([fold.test, prepared.split.test])
    plain, held_out, seen = (fitted(rows) for rows in (fold.test[:0], unseen, fold.validation[:50]))
    assert held_out["train"] == plain["train"]  # to the last bit, by labels of the tuned threshold as well
    assert held_out["test"] != plain["test"]
    assert seen["train"] != plain["train"]
