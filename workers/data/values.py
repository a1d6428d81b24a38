"""Cells as models read them: text, 32-bit floats, and classes."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import polars as pl

from app.core.errors import InvalidData
from app.core.signature import ColumnType, Task
from workers.learning import Array

MAX_CLASSES = 1000
_TRUE = re.compile(r"^(true|t|yes|y|1|1\.0)$", re.IGNORECASE)
_FALSE = re.compile(r"^(false|f|no|n|0|0\.0)$", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?", re.ASCII)
_DAY_US = 86_400e6
_WHOLE = 2**53  # beyond, not every integer is a double
_COARSE = 0.01  # of the spread: a coarser float32 loses what a model could use


def as_text(column: pl.Series) -> pl.Series:
    """Each value as a person writes it: whole floats without a fraction, midnights as dates, true and false."""
    column = column.alias("")  # polars takes some names, as `^a$`, for patterns
    if column.dtype.is_float():
        column = column.fill_nan(None)
        whole = ((column == column.floor()) & (column.abs() < _WHOLE)).fill_null(value=False)
        return column.cast(pl.Int64, strict=False).cast(pl.String).zip_with(whole, column.cast(pl.String))
    if column.dtype == pl.Datetime:
        midnight = (column == column.dt.truncate("1d")).fill_null(value=False)
        return column.dt.strftime("%Y-%m-%d").zip_with(midnight, column.dt.strftime("%Y-%m-%dT%H:%M:%S%.f"))
    return column.cast(pl.String)


def as_numbers(column: pl.Series, kind: ColumnType) -> pl.Series:
    """Float32 with nulls for what is missing, no number, or not finite; dates in days since 1970-01-01 UTC."""
    values = _doubles(column.alias(""), kind).cast(pl.Float32, strict=False)
    return values.set(~values.is_finite().fill_null(value=True), None)


def exact_numbers(column: pl.Series) -> pl.Series:
    """Integers as they are, anything else as Float64; nulls for what is missing or no number."""
    column = column.fill_nan(None) if column.dtype.is_float() else column
    return column if column.dtype.is_integer() else _doubles(column.alias(""), "number")


def _doubles(column: pl.Series, kind: ColumnType) -> pl.Series:
    if kind == "boolean" and column.dtype != pl.Boolean:
        return pl.Series("", [_truth(word) for word in as_text(column).str.strip_chars().to_list()], pl.Float64)
    if column.dtype == pl.Datetime:
        return column.dt.epoch("us").cast(pl.Float64) / _DAY_US
    if column.dtype == pl.String:
        column = column.str.strip_chars()
    return column.cast(pl.Float64, strict=False)


def _truth(word: str | None) -> float | None:
    if word is None or not (_TRUE.match(word) or _FALSE.match(word)):
        return None
    return 1.0 if _TRUE.match(word) else 0.0


def coarse_step(column: pl.Series, kind: ColumnType = "number") -> float | None:
    """The distance of neighbouring 32-bit floats at the column's size, if it is large against the column's spread."""
    values = _doubles(column.alias(""), kind).drop_nulls().to_numpy()
    values = values[np.abs(values) <= np.finfo(np.float32).max]
    step = float(np.spacing(np.abs(values).max().astype(np.float32))) if len(values) else 0.0
    return step if step > _COARSE * values.std() > 0 else None


@dataclass(frozen=True, slots=True)
class Target:
    """The target: int64 class indices with `classes`, or float64 values."""

    y: Array
    classes: tuple[str, ...] = ()


def read_target(column: pl.Series, task: Task, classes: tuple[str, ...] = (), *, to_learn: bool = True) -> Target:
    """Check and encode a target without missing values. With `classes` the order is given, and others become -1.

    `to_learn`: a target of one value is refused.
    """
    name = column.name
    if task == "regression":
        if not column.dtype.is_numeric():
            message = f"'{name}' is not a column of numbers; use task classification or another target"
            raise InvalidData.at("target", msg=message)
        values = column.cast(pl.Float64).to_numpy()
        if to_learn and not classes and column.n_unique() < 2:  # noqa: PLR2004 - one value
            raise InvalidData.at("target", msg=f"'{name}' has one value only, so there is nothing to learn")
        if np.abs(values).max() > np.finfo(np.float32).max:
            message = f"'{name}' has values beyond 3.4e38, which a prediction cannot hold; divide it by a constant"
            raise InvalidData.at("target", msg=message)
        return Target(values)
    distinct = column.unique()  # each is read once, however many rows there are
    labels = as_text(distinct)
    classes = classes or check_classes(labels, name)
    index = {label: i for i, label in enumerate(classes)}
    codes = pl.Series([index.get(label, -1) for label in labels.to_list()], dtype=pl.Int64)
    return Target(column.replace_strict(distinct, codes, return_dtype=pl.Int64).to_numpy(), classes)


def check_classes(labels: pl.Series, name: str = "") -> tuple[str, ...]:
    """The distinct labels, numbers in their own order, others as text."""
    distinct = labels.unique().to_list()
    if len(distinct) < 2:  # noqa: PLR2004 - one class
        message = f"'{name}' has one class only ('{distinct[0]}'); a classifier needs two"
        raise InvalidData.at("target", msg=message)
    if len(distinct) > MAX_CLASSES:
        message = f"'{name}' has {len(distinct)} classes, at most {MAX_CLASSES}; use task regression or another target"
        raise InvalidData.at("target", msg=message)
    order: Callable[[str], tuple[Decimal, str]] | None = None
    if all(_NUMBER.fullmatch(label) for label in distinct):
        order = lambda label: (Decimal(label), label)  # noqa: E731 - 1 and 01 are two labels of one number
    return tuple(sorted(distinct, key=order))
