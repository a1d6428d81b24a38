"""What a person and the training job learn of a typed table: one entry a column, and hints on columns that mislead."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from app.specs.data import ROW_ID, ColumnKind, ColumnSchema
from workers.data.findings import Findings, Tick, listed, shorten
from workers.data.relations import warn_of_correlated

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
BINS = 20
TOP = 20
_TOP_CHARS = 64 << 20  # of text that is counted by value
_EXACT_ROWS = 5_000_000  # above, `unique` is a HyperLogLog estimate, some 5 % off
_SAMPLE_ROWS = 2_000_000  # quantiles and histograms see at most about this many rows, evenly spaced
_RELATION_ROWS = 200_000
_RELATION_UNIQUE = 1000
_CATEGORY_UNIQUE, _CATEGORY_MOST = 50, 10_000
_CATEGORY_CHARS = 100
_DAY_US = 86_400e6
_ID_ROWS = 20  # below, every value may well differ by chance
_KINDS: dict[type[pl.DataType], ColumnKind] = {
    pl.Int64: "integer",
    pl.Float64: "number",
    pl.Boolean: "boolean",
    pl.Datetime: "datetime",
}


def profile_table(data: Path, findings: Findings, tick: Tick) -> list[dict[str, Any]]:
    """One JSON-ready entry a column of the Parquet file `data`.

    Each has name, type, missing, unique (and whether that is an estimate), and by type:
    number, integer: min, max, mean, std, quantiles (of QUANTILES), histogram {edges, counts}
    category, text, boolean: top [{value, count}]; text and category: length {min, mean, max} in characters
    text: length_histogram {edges, counts} in characters
    datetime: min, max as ISO 8601, UTC where the file gave a zone; histogram {edges, counts} in days since 1970-01-01

    Columns are read one at a time. Constant, id-like, equal and correlated columns are warned about.
    """
    lazy = pl.scan_parquet(data)
    schema = [name for name in lazy.collect_schema() if name != ROW_ID]
    rows = int(lazy.select(pl.len()).collect().item())
    entries = []
    for i, name in enumerate(schema):
        entries.append(profile_column(lazy.select(pl.nth(i + 1)), name, rows))  # names may be patterns to pl.col
        tick((i + 1) / len(schema), f"{i + 1} of {len(schema)} columns profiled")
    _warn_of_single(entries, rows, findings)
    _warn_of_equal(lazy, entries, rows, findings)
    warn_of_correlated(lazy, entries, rows, findings)
    return entries


def columns_of(entries: list[dict[str, Any]]) -> list[ColumnSchema]:
    """The short form that the API lists."""
    return [ColumnSchema(name=e["name"], type=e["type"], missing=e["missing"], unique=e["unique"]) for e in entries]


def profile_column(column: pl.LazyFrame, name: str, rows: int) -> dict[str, Any]:
    """The entry of a frame's only column, which has `rows` rows; `profile_table` says what is in it."""
    lazy = column.select(pl.nth(0).alias("x"))
    dtype, x = lazy.collect_schema()["x"], pl.col("x")
    present = x.drop_nulls()
    hashes = present.hash()  # 8 bytes a row, however long its text is
    unique = hashes.n_unique() if rows <= _EXACT_ROWS else hashes.approx_n_unique()
    moments = {"min": x.min(), "max": x.max(), "mean": x.mean(), "std": x.std()} if dtype.is_numeric() else {}
    base = _collect(lazy.select(missing=x.null_count(), unique=unique, **moments))
    base["unique"] = min(base["unique"], rows - base["missing"])  # an estimate may overshoot
    entry: dict[str, Any] = {"name": name, "type": _KINDS.get(type(dtype), "text"), **base}
    entry["unique_is_estimate"] = rows > _EXACT_ROWS
    if not rows - entry["missing"]:
        return entry | {"type": "category", "top": []} if dtype == pl.String else entry
    if dtype.is_numeric():
        return entry | _numbers(lazy, rows)
    if isinstance(dtype, pl.Datetime):
        days = lazy.select((x.dt.epoch("us") / _DAY_US).alias("x"))
        shown = lazy.select(min=x.min().dt.to_string("iso:strict"), max=x.max().dt.to_string("iso:strict"))
        return entry | _collect(shown) | {"histogram": _numbers(days, rows)["histogram"]}
    if dtype == pl.String:
        length = x.str.len_chars()
        entry["length"] = _collect(lazy.select(min=length.min(), mean=length.mean(), max=length.max()))
        entry["type"] = _string_kind(entry, rows)
        if entry["type"] == "text":
            entry["length_histogram"] = _numbers(lazy.select(length.alias("x")), rows)["histogram"]
    if entry["type"] != "text" or entry["length"]["mean"] * rows <= _TOP_CHARS:
        counts = lazy.drop_nulls().group_by("x").len().sort(["len", "x"], descending=[True, False])
        top = counts.head(TOP).collect(engine="streaming")
        entry["top"] = [{"value": _shown(value), "count": count} for value, count in top.iter_rows()]
    return entry


def _collect(lazy: pl.LazyFrame) -> dict[str, Any]:
    """The only row, with null in place of floats that are not finite."""
    row = lazy.collect(engine="streaming").row(0, named=True)
    return {key: None if isinstance(v, float) and not np.isfinite(v) else v for key, v in row.items()}


def _shown(value: str | bool) -> str | bool:  # noqa: FBT001 - a cell's value
    return shorten(value, 200) if isinstance(value, str) else value


def _string_kind(entry: dict[str, Any], rows: int) -> ColumnKind:
    """`category` if values recur: at most 50 of them, or one for twenty rows up to 10,000, and none is prose."""
    unique, present = entry["unique"], rows - entry["missing"]
    few = unique <= max(_CATEGORY_UNIQUE, min(present // 20, _CATEGORY_MOST))
    recur = present < _ID_ROWS or unique <= present / 2
    return "category" if few and recur and entry["length"]["mean"] <= _CATEGORY_CHARS else "text"


def _numbers(lazy: pl.LazyFrame, rows: int) -> dict[str, Any]:
    step = max(rows // _SAMPLE_ROWS, 1)
    sample = lazy.select(pl.col("x").gather_every(step)).collect(engine="streaming").to_series().drop_nulls()
    values = sample.to_numpy().astype(np.float64)
    if not len(values):
        return {"quantiles": None, "histogram": None}
    with np.errstate(over="ignore", invalid="ignore"):  # the distance of two doubles may be infinite
        quantiles = [float(q) for q in np.quantile(values, QUANTILES)]
    known = quantiles if np.isfinite(quantiles).all() else None
    return {"quantiles": known, "histogram": _histogram(values)}


def _histogram(values: "np.ndarray[Any, np.dtype[np.float64]]") -> dict[str, Any] | None:
    """Counts in BINS equal bins, or in one for a constant; None where doubles cannot tell the edges apart."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return {"edges": [low, high], "counts": [len(values)]}
    if not np.isfinite(high - low):
        return None
    try:
        counts, edges = np.histogram(values, bins=BINS, range=(low, high))
    except ValueError:  # so numpy says that BINS do not fit between neighbouring doubles
        return None
    return {"edges": [float(e) for e in edges], "counts": [int(c) for c in counts]}


def _warn_of_single(entries: list[dict[str, Any]], rows: int, findings: Findings) -> None:
    constant, ids = list[str](), list[str]()
    for entry in entries:
        present = rows - entry["missing"]
        if entry["unique"] == 1 and present > 1:
            constant.append(entry["name"])
        exact = not entry["unique_is_estimate"]
        if exact and entry["unique"] == rows >= _ID_ROWS and _like_id(entry):
            ids.append(entry["name"])
    if constant:
        findings.warn(f"constant: {listed(constant, 10)}; a model learns nothing from such a column")
    if ids:
        findings.warn(f"different in every row, as an id is: {listed(ids, 10)}; drop ids before training")


def _like_id(entry: dict[str, Any]) -> bool:
    kind: ColumnKind = entry["type"]
    return kind == "integer" or (kind == "text" and bool(entry["length"]["max"] <= _CATEGORY_CHARS))


def _warn_of_equal(lazy: pl.LazyFrame, entries: list[dict[str, Any]], rows: int, findings: Findings) -> None:
    """Columns that are equal, or the same categories under other names, in the first _RELATION_ROWS rows."""
    groups: dict[bytes, list[str]] = {}
    head = lazy.head(_RELATION_ROWS)
    for i, entry in enumerate(entries, start=1):
        if entry["unique"] > 1:
            column = head.select(pl.nth(i).hash(0)).collect(engine="streaming").to_series()
            groups.setdefault(_fingerprint(column, entry["unique"]), []).append(entry["name"])
    where = "every row" if rows <= _RELATION_ROWS else f"the first {_RELATION_ROWS:,} rows"
    for names in groups.values():
        if len(names) > 1:
            findings.warn(
                f"columns {listed(names, 10)} say the same in {where}; "
                "if one is the target, drop the others, which give it away"
            )


def _fingerprint(column: pl.Series, unique: int) -> bytes:
    """Equal for columns of hashes that say the same: with few values, at which row each value occurs first."""
    if unique <= _RELATION_UNIQUE and unique <= len(column) / 2:
        frame = column.to_frame("x").with_row_index("row")
        column = frame.select(pl.col("row").first().over("x")).to_series()
    return hashlib.blake2b(column.to_numpy().tobytes(), digest_size=16).digest()
