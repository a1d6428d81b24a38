"""Parquet uploads: declared types are kept, nothing is inferred."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from app.settings import LimitSettings
from workers.data.delimited import unique_names
from workers.data.findings import Findings, Tick, shorten, unreadable
from workers.data.infer import finite

_BATCH_ROWS, _BATCH_BYTES = 50_000, 32 << 20
_MAX_INT64 = 2**63 - 1


def read_parquet(path: Path, findings: Findings, limits: LimitSettings, tick: Tick) -> Iterator[pl.DataFrame]:
    """Batches of Int64, Float64, Boolean, Datetime[us] and String columns.

    InvalidData: damaged, too large once unpacked, no rows, too many columns, or a column of another type.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            _check(file, limits)
            names = unique_names(file.schema_arrow.names, findings)
            changed = Counter[tuple[str, str]]()
            beyond = _beyond_int64(file, names)
            size = _batch_rows(file)
            done = 0
            for batch in file.iter_batches(batch_size=size, use_threads=False):
                batch.validate(full=True)  # UTF-8 among others: the reader trusts the file, and polars the reader
                frame = pl.DataFrame(
                    {n: _normal(n, c, changed, beyond) for n, c in zip(names, batch.columns, strict=True)}
                )
                done += len(frame)
                yield frame
                tick(done / file.metadata.num_rows, f"{done:,} rows read")
    except (OSError, pa.ArrowException, pl.exceptions.PolarsError, ValueError, MemoryError) as error:
        raise unreadable(f"the Parquet file is damaged: {shorten(str(error), 200)}; write it again") from None
    for name in sorted(beyond):
        findings.warn(
            f"column '{shorten(name, 60)}' becomes text, so that no digit is lost: "
            "some values do not fit signed 64-bit integers"
        )
    for (name, change), count in changed.items():
        if count:
            findings.warn(f"column '{shorten(name, 60)}': {count} {change}")


def _batch_rows(file: pq.ParquetFile) -> int:
    """Rows whose cells take some _BATCH_BYTES."""
    meta = file.metadata
    unpacked = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
    row_bytes = max(unpacked / meta.num_rows, 8 * meta.num_columns)
    return int(min(max(_BATCH_BYTES / row_bytes, 1), _BATCH_ROWS))


def _check(file: pq.ParquetFile, limits: LimitSettings) -> None:
    meta = file.metadata
    if not meta.num_rows or not meta.num_columns:
        raise unreadable("the table has no data rows; upload one with data")
    if meta.num_columns > limits.columns:
        raise unreadable(
            f"the table has {meta.num_columns:,} columns; at most {limits.columns:,} are taken (AIMASS_LIMIT_COLUMNS)"
        )
    unpacked = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
    if unpacked > limits.unpacked_mb << 20:
        raise unreadable(
            f"unpacked, the file has {unpacked >> 20:,} MiB; "
            f"at most {limits.unpacked_mb:,} are taken (AIMASS_LIMIT_UNPACKED_MB)"
        )


def _beyond_int64(file: pq.ParquetFile, names: list[str]) -> set[str]:
    """Columns of unsigned integers that Int64 cannot hold; they become text, so that no digit is lost."""
    unsigned = [i for i, field in enumerate(file.schema_arrow) if pa.types.is_uint64(field.type)]
    beyond: set[str] = set()
    for i in unsigned:
        for batch in file.iter_batches(columns=[file.schema_arrow.names[i]], use_threads=False):
            if (pl.Series(pl.from_arrow(batch.column(0))) > _MAX_INT64).any():
                beyond.add(names[i])
    return beyond


def _normal(name: str, column: pa.Array, changed: Counter[tuple[str, str]], beyond: set[str]) -> pl.Series:
    """One batch of a column in the type that it is stored in; `changed` counts values by (column, change)."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
        column = column.cast(kind)
    series = pl.Series("", pl.from_arrow(column)) if _is_plain(kind) else None  # some names are patterns to polars
    if series is None:
        raise unreadable(
            f"column '{shorten(name, 60)}' has type {shorten(str(kind), 80)}; "
            "flatten it to numbers, text, booleans or dates, or leave it out"
        )
    if pa.types.is_integer(kind):
        return series.cast(pl.String if name in beyond else pl.Int64)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        floats = series.cast(pl.Float64)
        kept = finite(floats)
        changed[name, "NaN or infinite values were set missing"] += kept.null_count() - floats.null_count()
        return kept
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return series.cast(pl.Datetime("us", getattr(series.dtype, "time_zone", None))).dt.replace_time_zone(None)
    if pa.types.is_boolean(kind):
        return series
    text = series.cast(pl.String)
    nul = int(text.str.contains("\0", literal=True).sum())
    if nul:
        changed[name, "values held NUL characters, which were taken out"] += nul
        text = text.str.replace_all("\0", "", literal=True)
    return text.set(text == "", None)


def _is_plain(kind: pa.DataType) -> bool:
    t = pa.types
    tests = (
        t.is_integer, t.is_floating, t.is_decimal, t.is_boolean, t.is_date, t.is_timestamp,
        t.is_string, t.is_large_string, t.is_string_view, t.is_null,
    )  # fmt: skip
    return any(test(kind) for test in tests)
