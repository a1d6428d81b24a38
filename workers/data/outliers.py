"""Training rows that lie far from the others are left out; rows that judge never are."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from app.core.errors import InvalidData, InvalidSpec
from app.specs.clean import DropOutliers
from app.specs.jobs import TrainSpec
from workers.data.splits import Split
from workers.data.values import as_numbers
from workers.learning import Array

_MOST = 0.5  # of the training rows; more are no outliers


def without_outliers(frame: pl.DataFrame, numbers: Sequence[str], y: Array, spec: TrainSpec, split: Split) -> Split:
    """The split with fewer training rows.

    Args:
        frame: the table, cleaned.
        numbers: the used columns of numbers, where a step names none.
        y: class indices or values [N].
        spec: with `clean`.
        split: over the rows of `frame`.

    Raises:
        InvalidSpec, InvalidData: a step finds no numbers, or leaves too little; the field is named.
    """
    train = split.train
    for i, step in enumerate(spec.clean):
        if not isinstance(step, DropOutliers):
            continue
        names = step.columns or numbers
        if not names:
            raise InvalidSpec.at("clean", i, "columns", msg="no used column is of numbers; leave the step out")
        for j, name in enumerate(step.columns or []):
            if not frame[name].dtype.is_numeric():
                raise InvalidSpec.at("clean", i, "columns", j, msg=f"'{name}' is not a column of numbers; leave it out")
        outside = np.zeros(len(train), bool)
        for name in names:
            outside |= _outside(as_numbers(frame[name], "number").to_numpy()[train].astype(np.float64), step)
        if outside.sum() > _MOST * len(train):
            msg = f"{outside.sum()} of {len(train)} training rows would be dropped; raise it, or name fewer columns"
            raise InvalidData.at("clean", i, "factor", msg=msg)
        kept = train[~outside]
        if spec.task == "classification" and len(np.unique(y[kept])) < len(np.unique(y[train])):
            msg = "a class would lose all its training rows; raise it, or name fewer columns"
            raise InvalidData.at("clean", i, "factor", msg=msg)
        train = kept
    return replace(split, train=train)


def _outside(values: Array, step: DropOutliers) -> Array:
    """Which of a column's values are outliers; of a column without values none."""
    if np.isnan(values).all():
        return np.zeros(len(values), bool)
    if step.method == "z_score":
        middle, spread = np.nanmean(values), np.nanstd(values)
        low, high = middle - step.factor * spread, middle + step.factor * spread
    else:
        low, high = np.nanquantile(values, [0.25, 0.75])
        low, high = low - step.factor * (high - low), high + step.factor * (high - low)
    return np.asarray((values < low) | (values > high))
