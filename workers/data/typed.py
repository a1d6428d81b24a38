"""Columns whose types are declared, as Parquet and Arrow do it, in the types that a data set is stored in."""

from collections import Counter
from dataclasses import dataclass

import polars as pl
import pyarrow as pa

from app.settings import LimitSettings
from workers.data.findings import Findings, shorten, unreadable
from workers.data.infer import finite

_MAX_INT64 = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Changes:
    """What is changed on the way: values by (column, change), and columns of integers that become text."""

    counted: Counter[tuple[str, str]]
    beyond: set[str]

    def tell(self, findings: Findings) -> None:
        """As warnings."""
        for name in sorted(self.beyond):
            findings.warn(
                f"column '{shorten(name, 60)}' becomes text, so that no digit is lost: "
                "some values do not fit signed 64-bit integers"
            )
        for (name, change), count in self.counted.items():
            if count:
                findings.warn(f"column '{shorten(name, 60)}': {count} {change}")


def check_columns(count: int, limits: LimitSettings) -> None:
    """InvalidData for a table that is too wide."""
    if count > limits.columns:
        raise unreadable(
            f"the table has {count:,} columns; at most {limits.columns:,} are taken (AIMASS_LIMIT_COLUMNS)"
        )


def beyond_int64(names: list[str], batch: pa.RecordBatch) -> set[str]:
    """Columns with unsigned integers that Int64 cannot hold."""
    return {
        name
        for name, column in zip(names, batch.columns, strict=True)
        if is_unsigned(column.type) and (pl.Series(pl.from_arrow(column.cast(pa.uint64()))) > _MAX_INT64).any()
    }


def is_unsigned(kind: pa.DataType) -> bool:
    """Unsigned integers of 64 bits, as they are or in a dictionary."""
    return bool(pa.types.is_uint64(kind.value_type if pa.types.is_dictionary(kind) else kind))


def normal_frame(names: list[str], batch: pa.RecordBatch, changes: Changes) -> pl.DataFrame:
    """Int64, Float64, Boolean, Datetime[us] and String columns. InvalidData for a column of another type."""
    return pl.DataFrame({name: _normal(name, c, changes) for name, c in zip(names, batch.columns, strict=True)})


def _normal(name: str, column: pa.Array, changes: Changes) -> pl.Series:
    changed, beyond = changes.counted, changes.beyond
    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
        column = column.cast(kind)
    if pa.types.is_decimal(kind):
        kind = pa.float64()
        column = column.cast(kind)  # by Arrow: polars ends the process at one of 256 bits
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        column = column.view(pa.timestamp(kind.unit))  # its numbers are UTC, whatever the zone that it is shown in
    series = pl.Series("", pl.from_arrow(column)) if _is_plain(kind) else None  # some names are patterns to polars
    if series is None:
        raise unreadable(
            f"column '{shorten(name, 60)}' has type {shorten(str(kind), 80)}; "
            "flatten it to numbers, text, booleans or dates, or leave it out"
        )
    if pa.types.is_integer(kind):
        return series.cast(pl.String if name in beyond else pl.Int64)
    if pa.types.is_floating(kind):
        floats = series.cast(pl.Float64)
        kept = finite(floats)
        changed[name, "NaN or infinite values were set missing"] += kept.null_count() - floats.null_count()
        return kept
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return series.cast(pl.Datetime("us"))
    if pa.types.is_boolean(kind):
        return series
    text = series.cast(pl.String)
    nul = int(text.str.contains("\0", literal=True).sum())
    if nul:
        changed[name, "values held NUL characters, which were taken out"] += nul
        text = text.str.replace_all("\0", "", literal=True)
    text = text.str.strip_chars()  # as of every other file, and as predictions are read
    return text.set(text == "", None)


def _is_plain(kind: pa.DataType) -> bool:
    t = pa.types
    tests = (
        t.is_integer, t.is_floating, t.is_boolean, t.is_date, t.is_timestamp,
        t.is_string, t.is_large_string, t.is_string_view, t.is_null,
    )  # fmt: skip
    return any(test(kind) for test in tests)
