"""From a table's typed columns to the tensors of a signature."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from app.core.errors import InvalidData, InvalidInput, InvalidSpec
from app.core.signature import Column, ColumnType, Signature, Tensor
from app.specs.clean import DropDuplicates, DropMissing, FilterRows, named_by_clean
from app.specs.data import ROW_ID
from app.specs.jobs import TrainSpec
from workers.data.findings import listed
from workers.data.sql import rows_where
from workers.data.values import as_numbers, as_text, coarse_step
from workers.learning import Array

_ID_SHARE = 0.5  # a text column with more distinct values per row than this names rows rather than describing them
_ID_MIN = 50
_TYPES: Mapping[str, ColumnType] = {
    "integer": "integer", "number": "number", "boolean": "boolean", "category": "category"
}  # fmt: skip


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
    asked += spec.features.named_by_steps()
    asked += named_by_clean(spec.clean) + spec.dividing_columns()
    for loc, name in asked:
        if name not in known:
            listed = ", ".join(known[:50])
            message = f"the data set has no column '{name}'; it has: {listed}"
            raise InvalidSpec.at(*loc, msg=message, type="unknown_column")


def offered(frame: pl.DataFrame, spec: TrainSpec) -> list[str]:
    """Columns that may be features: not the target, nor what is dropped, nor what only divides the rows."""
    keys = spec.split.left_out - set(spec.features.types)
    return [name for name in frame.columns if name not in {ROW_ID, spec.target, *spec.features.drop, *keys}]


def choose_columns(
    frame: pl.DataFrame, types: Mapping[str, str], spec: TrainSpec, notes: Notes
) -> tuple[tuple[Column, ...], tuple[Tensor, ...]]:
    """Decide which columns the model sees, as what, and in which tensor.

    Args:
        frame: the table, cleaned.
        types: column types of the profile.
        spec: with `features` and `target`.
        notes: gets a warning for each column that is left out, or not read whole, without being asked for.
    """
    columns, width = [], {"numeric": 0, "categorical": 0}
    for name in offered(frame, spec):
        column, asked = frame[name].alias(""), name in spec.features.types  # some names are patterns to polars
        kind = spec.features.types.get(name) or _TYPES.get(types[name])
        reason = _unusable(column, types[name], asked=asked)
        if reason or kind is None:
            notes.warnings.append(f"column '{name}' is left out: {reason}")
            continue
        tensor = "categorical" if kind == "category" else "numeric"
        values = _read(column, kind)
        _check_read(name, column, values, kind, notes)
        columns.append(Column(name, kind, tensor, width[tensor], values.null_count() > 0))
        width[tensor] += 1
    if not columns:
        hint = "; the family text_linear reads text" if "text" in types.values() else ""
        msg = f"no column is left to learn from; set features.types for those to use{hint}"
        raise InvalidData.at("features", msg=msg)
    inputs = (
        Tensor("numeric", "FP32", (-1, width["numeric"])),
        Tensor("categorical", "BYTES", (-1, width["categorical"])),
    )
    return tuple(columns), tuple(t for t in inputs if t.shape[1])


def _unusable(column: pl.Series, kind: str, *, asked: bool) -> str | None:
    """Why a column cannot be used as it is, or None."""
    present = column.drop_nulls()
    distinct = present.n_unique()
    if distinct + (len(present) < len(column)) <= 1:  # one value and gaps are two things to tell apart
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


def _check_read(name: str, column: pl.Series, values: pl.Series, kind: ColumnType, notes: Notes) -> None:
    """InvalidSpec if nothing of a column can be read as `kind`; warnings of what is lost."""
    lost = column.filter(values.is_null() & column.is_not_null())
    if len(lost):
        examples = listed(as_text(lost.unique(maintain_order=True)).to_list(), 3)
        if values.null_count() == len(values):
            message = f"no value of '{name}' can be read as {kind}: {examples}; choose another type, or drop it"
            raise InvalidSpec.at("features", "types", name, msg=message)
        notes.warnings.append(
            f"column '{name}': {len(lost)} of {len(column)} values cannot be read as {kind} and are missing: {examples}"
        )
    if kind == "category":
        return
    if column.dtype == pl.Datetime:
        notes.warnings.append(f"column '{name}' is read as days since 1970-01-01 UTC, and expects them in predictions")
    step = coarse_step(column, kind)
    if step:
        notes.warnings.append(
            f"column '{name}': its 32-bit floats are {step:g} apart, so smaller differences are lost; "
            "subtract a constant, or make it a category"
        )


def table_inputs(frame: pl.DataFrame, signature: Signature) -> dict[str, Array]:
    """The signature's tensors: `numeric` FP32 [N, n], NaN = missing; the others str objects [N, m], "" = missing."""
    inputs: dict[str, Array] = {}
    for tensor in signature.inputs:
        columns = [_read(frame[c.name], c.type) for c in signature.columns if c.tensor == tensor.name]
        if tensor.datatype == "BYTES":
            inputs[tensor.name] = np.stack([np.asarray(c.fill_null("").to_list(), object) for c in columns], axis=1)
        else:
            inputs[tensor.name] = np.stack([c.to_numpy().astype(np.float32) for c in columns], axis=1)
    return inputs


def _read(column: pl.Series, kind: ColumnType) -> pl.Series:
    """A column as text (categories, texts) or Float32, with nulls for what is missing."""
    return as_text(column) if kind in {"category", "text"} else as_numbers(column, kind)


def clean_rows(frame: pl.DataFrame, spec: TrainSpec, notes: Notes) -> pl.DataFrame:
    """Drop rows without a target, then as `clean` says; each step is counted."""
    kept = present(frame, [spec.target])
    notes.counts["missing_target"] = len(frame) - len(kept)
    if not len(kept):
        raise no_target(spec.target)
    for i, step in enumerate(spec.clean):
        before = len(kept)
        if isinstance(step, DropDuplicates):
            used = [c for c in kept.columns if c != ROW_ID and c not in spec.features.drop]
            kept = kept.filter(rows_of_columns(kept, used).is_first_distinct())
        elif isinstance(step, FilterRows):
            kept = rows_where(kept, step.where, ("clean", i, "where"))
            if not len(kept):
                raise true_for_no_row(i)
        elif isinstance(step, DropMissing):
            kept = present(kept, step.columns)
        else:
            continue  # outliers are left out of training rows, once they are known
        notes.counts[step.step] = notes.counts.get(step.step, 0) + before - len(kept)
    return kept


def no_target(name: str) -> InvalidInput:
    """InvalidData for a target without any value."""
    return InvalidData.at("target", msg=f"every value of '{name}' is missing; choose another target")


def true_for_no_row(step: int) -> InvalidInput:
    """InvalidData for a filter that keeps nothing."""
    return InvalidData.at("clean", step, "where", msg="is true for no row; correct the predicate")


def present(frame: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    """Rows in which no value of the named columns is missing."""
    for name in names:
        column = frame[name].alias("")  # some names are patterns to polars
        column = column.fill_nan(None) if column.dtype.is_float() else column
        frame = frame.filter(column.is_not_null())
    return frame


def rows_of_columns(frame: pl.DataFrame, names: Sequence[str]) -> pl.Series:
    """The rows of some columns, each as one value that can be compared."""
    plain = [frame[name].alias(str(i)) for i, name in enumerate(names)]  # some names are patterns to polars
    return pl.DataFrame(plain).to_struct("")
