"""The first rows of a data set, for people to look at."""

import math
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from app.specs.data import ROW_ID
from workers.data.findings import shorten

PREVIEW_ROWS = 100
_CELLS = 100_000  # of a table so wide that fewer rows are shown
_TEXT = 1000  # characters of a cell


def preview(data: Path) -> list[dict[str, Any]]:
    """The first PREVIEW_ROWS rows of the Parquet file `data` as JSON objects; fewer of a very wide table.

    Missing is null, dates are ISO 8601, integers are exact, long text ends in `…`. Encoded pictures are left out.
    """
    lazy = pl.scan_parquet(data)
    schema = lazy.collect_schema()
    # By place, since names may be patterns to pl.col.
    shown = [i for i, (name, dtype) in enumerate(schema.items()) if name != ROW_ID and dtype != pl.Binary]
    rows = max(1, min(PREVIEW_ROWS, _CELLS // max(1, len(shown))))
    head = lazy.head(rows).select(pl.nth(shown)).collect()
    return [{name: _json(value) for name, value in row.items()} for row in head.iter_rows(named=True)]


def _json(value: Any) -> Any:  # noqa: ANN401 - a cell of any column
    if isinstance(value, str):
        return shorten(value, _TEXT)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.isoformat() if isinstance(value, datetime) else value
