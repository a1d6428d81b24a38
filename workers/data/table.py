"""Tables of any size: string batches are put aside, typed once every value was seen, and written as Parquet."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from app.specs.data import ROW_ID
from workers.data.findings import Findings, Tick
from workers.data.infer import Evidence, cast, decide, strip

ROW_GROUP = 50_000
_HELD_BYTES = 64 << 20
_MAX_HASHED_ROWS = 20_000_000  # 8 bytes each, and as much again to compare them


@dataclass(slots=True)
class TableWriter:
    """Writes typed frames with their row ids, and counts the rows that repeat an earlier one."""

    path: Path
    rows: int = 0
    _writer: pq.ParquetWriter | None = None
    _pending: list[pl.DataFrame] = field(default_factory=list)
    _held_bytes: int = 0
    _hashes: list["np.ndarray[tuple[int], np.dtype[np.uint64]]"] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._flush()
        if self._writer is not None:
            self._writer.close()

    def write(self, frame: pl.DataFrame) -> None:
        """Append rows. Every frame has the same columns and types."""
        if self.rows + len(frame) <= _MAX_HASHED_ROWS:
            self._hashes.append(frame.hash_rows(seed=0).to_numpy())
        ids = pl.Series(ROW_ID, np.arange(self.rows, self.rows + len(frame), dtype=np.int64))
        self._pending.append(frame.insert_column(0, ids))
        self.rows += len(frame)
        self._held_bytes += int(frame.estimated_size())
        if sum(map(len, self._pending)) >= ROW_GROUP or self._held_bytes >= _HELD_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        table = pl.concat(self._pending).to_arrow(compat_level=pl.CompatLevel.oldest())
        if self._writer is None:
            self._writer = pq.ParquetWriter(self.path, table.schema, compression="zstd")
        self._writer.write_table(table, row_group_size=ROW_GROUP)
        self._pending.clear()
        self._held_bytes = 0

    def duplicate_rows(self) -> int | None:
        """Rows that repeat an earlier row in every column; None when there were too many rows to compare."""
        if sum(map(len, self._hashes)) != self.rows:
            return None
        return self.rows - len(np.unique(np.concatenate(self._hashes))) if self._hashes else 0


def write_inferred(
    batches: Iterator[pl.DataFrame], target: Path, scratch: Path, findings: Findings, tick: Tick
) -> TableWriter:
    """Infer the types of string `batches` over all of them, then write `target`; `scratch` holds them meanwhile."""
    scratch.mkdir()
    evidence: dict[str, Evidence] = {}
    parts: list[Path] = []
    rows = 0
    for batch in batches:
        columns = {column.name: strip(column) for column in batch}
        for name, column in columns.items():
            evidence.setdefault(name, Evidence(rows=rows, missing=rows)).add(column)
        clean = pl.DataFrame(columns)
        rows += len(clean)
        parts.append(scratch / f"{len(parts):06}.arrow")
        clean.write_ipc(parts[-1], compression="lz4")
    delimiter = str(findings.details.get("delimiter", ","))
    for seen in evidence.values():
        seen.missing += rows - seen.rows  # batches in which the column did not occur
        seen.rows = rows
    plans = {name: decide(name, seen, delimiter, findings) for name, seen in evidence.items()}
    with TableWriter(target) as writer:
        for i, part in enumerate(parts):
            frame = pl.read_ipc(part)
            absent = pl.Series("", [None] * len(frame), pl.String)
            columns = {n: cast(frame[n] if n in frame.columns else absent, plan) for n, plan in plans.items()}
            writer.write(pl.DataFrame(columns))
            part.unlink()
            tick((i + 1) / len(parts), f"{writer.rows:,} rows typed")
    return writer
