"""From a table's typed columns to the tensors of a signature, and the target."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from app.core.errors import InvalidData, InvalidSpec
from app.core.signature import Column, ColumnType, Signature, Task, Tensor
from app.specs.data import ROW_ID
from app.specs.jobs import DropDuplicates, FeatureSpec, TrainSpec
from workers.learning import Array

MAX_CLASSES = 1000
_ID_SHARE = 0.5  # a text column with more distinct values per row than this names rows rather than describing them
_ID_MIN = 50
_TYPES: Mapping[str, ColumnType] = {
    "integer": "integer", "number": "number", "boolean": "boolean", "category": "category"
}  # fmt: skip
_TRUE = re.compile(r"^(true|t|yes|y|1|1\.0)$", re.IGNORECASE)
_FALSE = re.compile(r"^(false|f|no|n|0|0\.0)$", re.IGNORECASE)


@dataclass(slots=True)
class Notes:
    """What the model card tells of the preparation."""

    warnings: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


def check_columns(frame: pl.DataFrame, spec: TrainSpec) -> None:
    """InvalidSpec names every column of the spec that the data set does not have."""
    known = [name for name in frame.columns if name != ROW_ID]
    asked: list[tuple[tuple[str | int, ...], str]] = [(("target",), spec.target)]
    asked += [(("features", "drop", i), name) for i, name in enumerate(spec.features.drop)]
    asked += [(("features", "types", name), name) for name in spec.features.types]
    asked += [(("features", "steps", i, "column"), step.column) for i, step in enumerate(spec.features.steps)]
    for i, step in enumerate(spec.clean):
        if not isinstance(step, DropDuplicates):
            asked += [(("clean", i, "columns", j), name) for j, name in enumerate(step.columns)]
    for loc, name in asked:
        if name not in known:
            listed = ", ".join(known[:50])
            message = f"the data set has no column '{name}'; it has: {listed}"
            raise InvalidSpec.at(*loc, msg=message, type="unknown_column")


def choose_columns(
    frame: pl.DataFrame, types: Mapping[str, str], spec: TrainSpec, notes: Notes
) -> tuple[tuple[Column, ...], tuple[Tensor, ...]]:
    """Decide which columns the model sees, as what, and in which tensor.

    Args:
        frame: the table, cleaned.
        types: column types of the profile.
        spec: with `features` and `target`.
        notes: gets a warning for each column that is left out without being asked to.
    """
    chosen: list[tuple[str, ColumnType]] = []
    for name in frame.columns:
        if name in {ROW_ID, spec.target, *spec.features.drop}:
            continue
        kind = spec.features.types.get(name) or _TYPES.get(types[name])
        reason = _unusable(frame[name], types[name], asked=name in spec.features.types)
        if reason or kind is None:
            notes.warnings.append(f"column '{name}' is left out: {reason}")
        else:
            chosen.append((name, kind))
    if not chosen:
        raise InvalidData.at("features", msg="no column is left to learn from; set features.types for those to use")
    _check_clips(dict(chosen), spec.features)
    columns, width = [], {"numeric": 0, "categorical": 0}
    for name, kind in chosen:
        tensor = "categorical" if kind == "category" else "numeric"
        nullable = _read(frame[name], kind).null_count() > 0
        columns.append(Column(name, kind, tensor, width[tensor], nullable))
        width[tensor] += 1
    inputs = (
        Tensor("numeric", "FP32", (-1, width["numeric"])),
        Tensor("categorical", "BYTES", (-1, width["categorical"])),
    )
    return tuple(columns), tuple(t for t in inputs if t.shape[1])


def _unusable(column: pl.Series, kind: str, *, asked: bool) -> str | None:
    """Why a column cannot be used as it is, or None."""
    present = column.drop_nulls()
    distinct = present.n_unique()
    if distinct <= 1:
        return "it has one value or none"
    if asked:
        return None
    if kind not in _TYPES:
        return f"it is of type {kind}, which no family of tables reads; features.types can make it a category or number"
    if kind == "category" and distinct > max(_ID_MIN, _ID_SHARE * len(present)):
        return "nearly every row has its own value; set features.types to 'category' to use it"
    if kind == "integer" and distinct == len(column) > _ID_MIN:
        numbers = present.cast(pl.Int64, strict=False)
        low, high = numbers.min(), numbers.max()
        if isinstance(low, int) and isinstance(high, int) and high - low + 1 == distinct:
            return "it numbers the rows; set features.types to 'number' to use it"
    return None


def _check_clips(kinds: Mapping[str, ColumnType], features: FeatureSpec) -> None:
    for i, step in enumerate(features.steps):
        if kinds.get(step.column) not in {"number", "integer"}:
            message = f"'{step.column}' is not a used column of numbers; clip takes those only"
            raise InvalidSpec.at("features", "steps", i, "column", msg=message)
        if step.low is not None and step.high is not None and step.low > step.high:
            raise InvalidSpec.at("features", "steps", i, "low", msg="is above high; swap them")


def clip_bounds(columns: Sequence[Column], features: FeatureSpec) -> tuple[Array, Array] | None:
    """Low and high per column of `numeric`, FP32, infinite where open; None when nothing is clipped."""
    if not features.steps:
        return None
    numeric = [c.name for c in columns if c.tensor == "numeric"]
    low, high = np.full(len(numeric), -np.inf, np.float32), np.full(len(numeric), np.inf, np.float32)
    for step in features.steps:
        at = numeric.index(step.column)
        low[at] = max(low[at], -np.inf if step.low is None else step.low)
        high[at] = min(high[at], np.inf if step.high is None else step.high)
    return low, high


def table_inputs(frame: pl.DataFrame, signature: Signature) -> dict[str, Array]:
    """The signature's tensors: `numeric` FP32 [N, n], NaN = missing; `categorical` str objects [N, m], "" = missing."""
    inputs: dict[str, Array] = {}
    for tensor in signature.inputs:
        columns = [_read(frame[c.name], c.type) for c in signature.columns if c.tensor == tensor.name]
        if tensor.name == "categorical":
            inputs[tensor.name] = np.stack([np.asarray(c.fill_null("").to_list(), object) for c in columns], axis=1)
        else:
            inputs[tensor.name] = np.stack([c.to_numpy().astype(np.float32) for c in columns], axis=1)
    return inputs


def _read(column: pl.Series, kind: ColumnType) -> pl.Series:
    """A column as text (categories) or Float32 with nulls for what is missing, no number, or not finite."""
    if kind == "category":
        return as_text(column)
    if column.dtype == pl.String:
        if kind == "boolean":
            words = column.str.strip_chars().to_list()
            return pl.Series(column.name, [_truth(word) for word in words], pl.Float32)
        column = column.str.strip_chars().cast(pl.Float64, strict=False)
    values = column.cast(pl.Float32, strict=False)
    return values.set(~values.is_finite().fill_null(value=True), None)


def _truth(word: str | None) -> float | None:
    if word is None or not (_TRUE.match(word) or _FALSE.match(word)):
        return None
    return 1.0 if _TRUE.match(word) else 0.0


def as_text(column: pl.Series) -> pl.Series:
    """Values as a person writes them: whole floats without a fraction, booleans as true and false."""
    if column.dtype.is_float():
        present = column.drop_nulls().drop_nans()
        column = column.fill_nan(None)
        if bool((present == present.floor()).all()) and bool((present.abs() < 2**53).all()):
            column = column.cast(pl.Int64)
    return column.cast(pl.String)


@dataclass(frozen=True, slots=True)
class Target:
    """The target: int64 class indices with `classes`, or float64 values."""

    y: Array
    classes: tuple[str, ...] = ()


def read_target(column: pl.Series, task: Task, classes: tuple[str, ...] = ()) -> Target:
    """Check and encode a target without missing values. With `classes` the order is given, and others become -1."""
    if task == "regression":
        if not column.dtype.is_numeric():
            message = f"'{column.name}' is not a column of numbers; use task classification or another target"
            raise InvalidData.at("target", msg=message)
        values = column.cast(pl.Float64).to_numpy()
        if not classes and column.n_unique() < 2:  # noqa: PLR2004 - one value
            raise InvalidData.at("target", msg=f"'{column.name}' has one value only, so there is nothing to learn")
        return Target(values)
    text = as_text(column)
    classes = classes or check_classes(text)
    index = {label: i for i, label in enumerate(classes)}
    return Target(np.asarray([index.get(label, -1) for label in text.to_list()], np.int64), classes)


def check_classes(labels: pl.Series) -> tuple[str, ...]:
    """The distinct labels, whole numbers in their own order, others as text."""
    distinct = labels.unique().to_list()
    if len(distinct) < 2:  # noqa: PLR2004 - one class
        message = f"'{labels.name}' has one class only ('{distinct[0]}'); a classifier needs two"
        raise InvalidData.at("target", msg=message)
    if len(distinct) > MAX_CLASSES:
        message = (
            f"'{labels.name}' has {len(distinct)} classes, at most {MAX_CLASSES}; use task regression or another target"
        )
        raise InvalidData.at("target", msg=message)
    try:
        return tuple(sorted(distinct, key=int))
    except ValueError:
        return tuple(sorted(distinct))


def clean_rows(frame: pl.DataFrame, spec: TrainSpec, notes: Notes) -> pl.DataFrame:
    """Drop rows without a target, then as `clean` says; each step is counted."""
    target = frame[spec.target]
    if target.dtype.is_float():
        frame = frame.with_columns(pl.col(spec.target).fill_nan(None))
    kept = frame.filter(pl.col(spec.target).is_not_null())
    notes.counts["missing_target"] = len(frame) - len(kept)
    if not len(kept):
        raise InvalidData.at("target", msg=f"every value of '{spec.target}' is missing; choose another target")
    for step in spec.clean:
        before = len(kept)
        if isinstance(step, DropDuplicates):
            used = [c for c in kept.columns if c != ROW_ID and c not in spec.features.drop]
            kept = kept.unique(subset=used, keep="first", maintain_order=True)
        else:
            kept = kept.drop_nulls(step.columns)
        notes.counts[step.step] = notes.counts.get(step.step, 0) + before - len(kept)
    return kept


def instance_schema(columns: Sequence[Column]) -> dict[str, Any]:
    """JSON schema of one instance."""
    if columns[0].type == "image":
        return {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/*"}
    words = {"number": "number", "integer": "number", "boolean": "boolean", "category": "string"}
    properties = {c.name: {"type": [words[c.type], "null"] if c.nullable else words[c.type]} for c in columns}
    required = [c.name for c in columns if not c.nullable]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
