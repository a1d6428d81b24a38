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
from workers.data.typed import Changes, beyond_int64, check_columns, is_unsigned, normal_frame

_BATCH_ROWS, _BATCH_BYTES = 50_000, 32 << 20


def read_parquet(path: Path, findings: Findings, limits: LimitSettings, tick: Tick) -> Iterator[pl.DataFrame]:
    """Batches of Int64, Float64, Boolean, Datetime[us] and String columns.

    InvalidData: damaged, too large once unpacked, no rows, too many columns, or a column of another type.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            _check(file, limits)
            names = unique_names(file.schema_arrow.names, findings)
            changes = Changes(Counter(), _beyond_int64(file, names))
            size = _batch_rows(file)
            done = 0
            for batch in file.iter_batches(batch_size=size, use_threads=False):
                batch.validate(full=True)  # UTF-8 among others: the reader trusts the file, and polars the reader
                frame = normal_frame(names, batch, changes)
                done += len(frame)
                yield frame
                tick(done / file.metadata.num_rows, f"{done:,} rows read")
    except (OSError, pa.ArrowException, pl.exceptions.PolarsError, ValueError, MemoryError) as error:
        raise unreadable(f"the Parquet file is damaged: {shorten(str(error), 200)}; write it again") from None
    changes.tell(findings)


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
    check_columns(meta.num_columns, limits)
    unpacked = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
    if unpacked > limits.unpacked_mb << 20:
        raise unreadable(
            f"unpacked, the file has {unpacked >> 20:,} MiB; "
            f"at most {limits.unpacked_mb:,} are taken (AIMASS_LIMIT_UNPACKED_MB)"
        )


def _beyond_int64(file: pq.ParquetFile, names: list[str]) -> set[str]:
    """Columns of unsigned integers that Int64 cannot hold; they become text, so that no digit is lost."""
    unsigned = [i for i, field in enumerate(file.schema_arrow) if is_unsigned(field.type)]
    beyond: set[str] = set()
    for i in unsigned:
        for batch in file.iter_batches(columns=[file.schema_arrow.names[i]], use_threads=False):
            beyond |= beyond_int64([names[i]], batch)
    return beyond
