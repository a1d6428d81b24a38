"""Tables larger than memory: all rows are divided and all training rows are learnt from, some rows are held.

What looks at rows at random (statistics of the preparation, early stopping, metrics, intervals, the parity gate) gets
evenly spaced rows of each part, as many as memory allows. A family that reads `LearningData.streamed` learns from every
training row, a row group of the Parquet file at a time; any other learns from the training rows that are held.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from app.core.errors import InvalidSpec
from app.core.signature import Column, Signature
from app.specs.clean import DropDuplicates, DropMissing, FilterRows
from app.specs.data import ROW_ID
from app.specs.jobs import TrainSpec
from workers.data.splits import PARTS, Split, divide_rows
from workers.data.sql import rows_where
from workers.data.tables import Notes, check_columns, no_target, present, table_inputs, true_for_no_row
from workers.data.values import read_target
from workers.learning import Array, Part

_NUMBER_BYTES, _TEXT_BYTES = 18, 150  # of a cell while it is prepared and learnt from: a double, 32-bit floats, copies
_OBJECT_BYTES, _CHARACTER_BYTES = 60, 6  # of a longer text, as Python's and as polars' text
_SHARE = 0.5  # of the job's memory that a table may need before it counts as large
_HELD_SHARE = 0.125  # of the job's memory for the rows that are held
_HELD: Mapping[str, int] = {"train": 500_000, "validation": 250_000, "test": 500_000}  # rows at most
_FEWEST_HELD = 1000  # rows of a part, if there are so many
_NUMBERED = 0.9  # of the rows have a number of their own, by an estimate that is some 5 % off
_SAVED = 1_000_000  # rows of a split that are written at a time
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def row_bytes(columns: Sequence[Mapping[str, Any]]) -> int:
    """Memory that a row needs, by the columns of the data set's profile."""
    return sum(map(_cell_bytes, columns))


def _cell_bytes(column: Mapping[str, Any]) -> int:
    if column["type"] not in {"category", "text"}:
        return _NUMBER_BYTES
    characters = (column.get("length") or {}).get("mean") or 0.0
    return max(_TEXT_BYTES, _OBJECT_BYTES + round(_CHARACTER_BYTES * characters))


def is_large(profile: Mapping[str, Any], memory_mb: int, beside: int = 0) -> bool:
    """Would the table of this profile fill more than half of the job's memory, with so many bytes a row beside it?"""
    needed: int = profile["rows"] * (row_bytes(profile["columns"]) + beside)
    return needed > (memory_mb << 20) * _SHARE


def held_rows(split: Split, profile: Mapping[str, Any], memory_mb: int) -> Split:
    """Evenly spaced rows of each part, in its order. InvalidSpec if even the fewest are too many for the memory."""
    each = row_bytes(profile["columns"])
    scale = min(1.0, (memory_mb << 20) * _HELD_SHARE / each / sum(_HELD.values()))
    parts = {name: _evenly(getattr(split, name), max(_FEWEST_HELD, int(_HELD[name] * scale))) for name in PARTS}
    rows = sum(map(len, parts.values()))
    if rows * each > (memory_mb << 20) * _SHARE:
        needed = math.ceil(rows * each / _SHARE / (1 << 20))
        msg = f"{rows:,} rows are held at least, of {each / 1e6:.1f} MB each; raise it to {needed:,}"
        raise InvalidSpec.at("resources", "memory_mb", msg=f"{msg}, or upload shorter texts or fewer columns")
    return Split(**parts, method=split.method)


def spaced_rows(profile: Mapping[str, Any], memory_mb: int) -> Rows:
    """As many evenly spaced rows of the whole table as are held of all parts."""
    room = int((memory_mb << 20) * _HELD_SHARE / row_bytes(profile["columns"]))
    return _evenly(np.arange(profile["rows"]), max(1000, min(room, sum(_HELD.values()))))


def _evenly(rows: Rows, most: int) -> Rows:
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]


def among_held(held: Split) -> tuple[Rows, Split]:
    """Sorted positions in the file of all rows that are held, and their division by positions among them."""
    positions = np.sort(np.concatenate([getattr(held, name) for name in PARTS]))
    parts = {name: np.searchsorted(positions, getattr(held, name)).astype(np.int64) for name in PARTS}
    return positions, Split(**parts, method=held.method)


def read_rows(path: Path, positions: Rows) -> pl.DataFrame:
    """The rows at sorted `positions` of a Parquet file, with every column; a row group is in memory at a time."""
    with pq.ParquetFile(path) as file:
        found = [
            _frame(file, group, None)[rows - start] for group, start, rows in _by_group(file, positions) if len(rows)
        ]
    return pl.concat(found)


def read_column(path: Path, name: str) -> pl.Series:
    """One column, whole."""
    return pl.Series(name, pl.from_arrow(pq.read_table(path, columns=[name]).column(0)))


def _by_group(file: pq.ParquetFile, positions: Rows) -> Iterator[tuple[int, int, Rows]]:
    """(row group, its first row, those of the sorted `positions` that are in it)."""
    start = 0
    for group in range(file.metadata.num_row_groups):
        stop = start + file.metadata.row_group(group).num_rows
        low, high = np.searchsorted(positions, [start, stop])
        yield group, start, positions[low:high]
        start = stop


def _frame(file: pq.ParquetFile, group: int, columns: list[str] | None) -> pl.DataFrame:
    table = file.read_row_group(group, columns=columns, use_threads=False)
    return pl.DataFrame(pl.from_arrow(table))


def with_gaps(columns: Sequence[Column], profile: Mapping[str, Any]) -> tuple[Column, ...]:
    """Columns that miss values anywhere in the table, perhaps in no row that is held, take null."""
    missing = {c["name"] for c in profile["columns"] if c["missing"]}
    return tuple(replace(column, nullable=column.nullable or column.name in missing) for column in columns)


def without_row_numbers(frame: pl.DataFrame, spec: TrainSpec, profile: Mapping[str, Any], notes: Notes) -> pl.DataFrame:
    """Leaves out integers that number the table's rows, which rows that are spread over it do not show."""
    kept = list(frame.columns)
    for column in profile["columns"]:
        name = column["name"]
        if column["type"] != "integer" or name in {spec.target, *spec.features.drop, *spec.features.types}:
            continue
        spread = (column.get("max") or 0) - (column.get("min") or 0) + 1
        if spread == profile["rows"] and (column.get("unique") or 0) > _NUMBERED * profile["rows"]:
            notes.warnings.append(
                f"column '{name}' is left out: it numbers the rows; set features.types to 'number' to use it"
            )
            kept.remove(name)
    return frame[kept]


@dataclass(frozen=True)
class RowStream:
    """Training rows on disk: `positions` int64 [N] in the file, sorted, and `y` [N] as a `Part` has it."""

    path: Path
    signature: Signature
    positions: Rows
    y: Array

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each group that `read` gives."""
        return tuple(high - low for _, _, low, high in self.groups)

    @cached_property
    def groups(self) -> tuple[tuple[int, int, int, int], ...]:
        """(row group, its first row in the file, first and last + 1 of this stream's rows in it), where it has some."""
        found, done = [], 0
        with pq.ParquetFile(self.path) as file:
            for group, start, rows in _by_group(file, self.positions):
                if len(rows):
                    found.append((group, start, done, done + len(rows)))
                done += len(rows)
        return tuple(found)

    def read(self, at: int) -> Part:
        """The rows of the `at`-th of `groups`."""
        group, start, low, high = self.groups[at]
        names = [column.name for column in self.signature.columns]
        with pq.ParquetFile(self.path) as file:
            frame = _frame(file, group, names)[self.positions[low:high] - start]
        return Part(table_inputs(frame, self.signature), self.y[low:high])


@dataclass(frozen=True, slots=True)
class Divided:
    """A large table's rows, divided: `kept` int64 [N] are the positions of rows with a target, `y` [N] is theirs.

    `split` holds positions in the file.
    """

    kept: Rows
    y: Array
    classes: tuple[str, ...]
    split: Split

    def target_of(self, positions: Rows) -> Array:
        """The target of some of the kept rows."""
        return self.y[np.searchsorted(self.kept, positions)]

    def told(self, held: Split) -> str:
        """What the card has to say."""
        rows = ", ".join(f"{count:,} {name}" for name, count in held.sizes().items())
        return (
            f"the table would take more than half of resources.memory_mb: of its {len(self.kept):,} rows {rows} rows "
            "are in memory, evenly spaced, and metrics are of these"
        )


def divide_large(path: Path, spec: TrainSpec, profile: Mapping[str, Any], notes: Notes) -> Divided:
    """Clean and divide all rows of the table at `path`, a few columns at a time.

    Raises:
        InvalidSpec, InvalidData: the spec does not fit the data; the field is named.
    """
    check_columns(pl.read_parquet(path, n_rows=0), spec)
    kept = _clean(path, spec, profile, notes)
    column = read_column(path, spec.target)
    target = read_target(column if len(kept) == len(column) else column[kept], spec.task)
    del column
    by = None if spec.split.by is None else read_column(path, spec.split.by[1])[kept]
    split = divide_rows(target.y, spec.task, spec.split, by=by).split
    parts = {name: kept[getattr(split, name)] for name in PARTS}
    return Divided(kept, target.y, target.classes, Split(**parts, method=split.method))


def _clean(path: Path, spec: TrainSpec, profile: Mapping[str, Any], notes: Notes) -> Rows:
    """Positions of the rows that stay, counted as `clean_rows` counts them."""
    keep = _present(path, [spec.target])
    notes.counts["missing_target"] = int((~keep).sum())
    if not keep.any():
        raise no_target(spec.target)
    for i, step in enumerate(spec.clean):
        before = int(keep.sum())
        if isinstance(step, DropMissing):
            keep &= _present(path, step.columns)
        elif isinstance(step, FilterRows):
            keep = _kept(path, None, partial(rows_where, predicate=step.where, where=("clean", i, "where")), keep)
            if not keep.any():
                raise true_for_no_row(i)
        elif isinstance(step, DropDuplicates):
            names = [c["name"] for c in profile["columns"] if c["name"] not in spec.features.drop]
            rows = np.flatnonzero(keep)
            keep[:] = False
            keep[rows[_first_distinct(path, names, rows)]] = True
        else:
            msg = "outliers are looked for in memory, which this table does not fit; raise resources.memory_mb"
            raise InvalidSpec.at("clean", i, "step", msg=msg)
        notes.counts[step.step] = notes.counts.get(step.step, 0) + before - int(keep.sum())
    return np.flatnonzero(keep)


def _present(path: Path, names: list[str]) -> Mask:
    """Whether no value of the named columns is missing, for each row of the file."""
    return _kept(path, names, partial(present, names=names))


def _kept(
    path: Path, names: list[str] | None, choose: Callable[[pl.DataFrame], pl.DataFrame], among: Mask | None = None
) -> Mask:
    """Whether `choose` keeps a row, for each row of the file; it sees a row group's named columns, or all.

    With `among` it sees those rows alone, and keeps no other.
    """
    mask = np.zeros(pq.read_metadata(path).num_rows, bool)
    with pq.ParquetFile(path) as file:
        for group in range(file.metadata.num_row_groups):
            frame = _frame(file, group, None if names is None else [ROW_ID, *names])
            frame = frame if among is None else frame.filter(among[frame[ROW_ID].to_numpy()])
            mask[choose(frame)[ROW_ID].to_numpy()] = True
    return mask


def _first_distinct(path: Path, names: list[str], rows: Rows) -> Mask:
    """Which rows are the first of their kind, by 64-bit hashes: of 20 million, two agree with odds of 1 to 90,000."""
    with pq.ParquetFile(path) as file:
        hashes = [_frame(file, group, names).hash_rows(seed=0) for group in range(file.metadata.num_row_groups)]
    return pl.concat(hashes)[rows].is_first_distinct().to_numpy()


@dataclass(frozen=True, slots=True)
class Large:
    """The whole of a table of which some rows are held: its division, by positions, and its training rows."""

    split: Split
    train: RowStream

    def save(self, target: Path) -> None:
        """The row ids of each part as Parquet, as `Split.save` writes them; row ids are positions."""
        with pq.ParquetWriter(
            target, pa.schema({ROW_ID: pa.int64(), "part": pa.large_string()}), compression="zstd"
        ) as file:
            for name in PARTS:
                rows = getattr(self.split, name)
                for start in range(0, len(rows), _SAVED):
                    some = pl.DataFrame({ROW_ID: rows[start : start + _SAVED], "part": name})
                    file.write_table(some.to_arrow(compat_level=pl.CompatLevel.oldest()))


def load_parts(path: Path) -> Split:
    """A saved split as sorted row ids, part by part."""
    saved = pl.scan_parquet(path)
    parts = {
        name: saved.filter(pl.col("part") == name).select(ROW_ID).collect(engine="streaming")[ROW_ID].to_numpy()
        for name in PARTS
    }
    return Split(**{name: np.sort(rows) for name, rows in parts.items()}, method="saved")
