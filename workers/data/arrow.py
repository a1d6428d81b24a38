"""Arrow IPC uploads, as files (Feather) or streams: declared types are kept, nothing is inferred."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa

from app.settings import LimitSettings
from workers.data.delimited import unique_names
from workers.data.findings import Findings, Tick, shorten, unreadable
from workers.data.sniff import read_head
from workers.data.typed import Changes, beyond_int64, check_columns, normal_frame

_BATCH_ROWS = 50_000
_MAGIC = b"ARROW1"  # of a file; a stream begins with a message


def read_arrow(path: Path, findings: Findings, limits: LimitSettings, tick: Tick) -> Iterator[pl.DataFrame]:
    """Batches of Int64, Float64, Boolean, Datetime[us] and String columns.

    InvalidData: damaged, too large once unpacked, no rows, too many columns, or a column of another type.
    """
    try:
        names, rows, unsigned = _survey(path, findings, limits)
        changes = Changes(Counter(), unsigned)
        done = 0
        for batch in _batches(path):
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                frame = normal_frame(names, batch.slice(start, _BATCH_ROWS), changes)
                done += len(frame)
                yield frame
                tick(done / rows, f"{done:,} rows read")
    except (OSError, pa.ArrowException, pl.exceptions.PolarsError, ValueError, MemoryError) as error:
        raise unreadable(f"the Arrow file is damaged: {shorten(str(error), 200)}; write it again") from None
    changes.tell(findings)


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Each batch, checked through and through: the reader trusts the file."""
    with pa.OSFile(str(path)) as file:
        if read_head(path).startswith(_MAGIC):
            reader = pa.ipc.open_file(file)
            found = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            found = iter(pa.ipc.open_stream(file))
        for batch in found:
            batch.validate(full=True)
            yield batch


def _survey(path: Path, findings: Findings, limits: LimitSettings) -> tuple[list[str], int, set[str]]:
    """Final names, number of rows, and columns of integers that do not fit; the limits are checked on the way."""
    names: list[str] = []
    rows = size = 0
    unsigned: set[str] = set()
    for batch in _batches(path):
        if not names:
            check_columns(batch.num_columns, limits)
            names = unique_names(batch.schema.names, findings)
        rows += batch.num_rows
        size += batch.nbytes
        if size > limits.unpacked_mb << 20:
            raise unreadable(
                f"it unpacks to over {limits.unpacked_mb:,} MiB (AIMASS_LIMIT_UNPACKED_MB); upload it in parts"
            )
        unsigned |= beyond_int64(names, batch)
    if not rows or not names:
        raise unreadable("the table has no data rows; upload one with data")
    return names, rows, unsigned
