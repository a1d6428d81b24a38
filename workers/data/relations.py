"""Columns of numbers that rise and fall together, so that one of them is enough."""

from typing import Any

import numpy as np
import polars as pl

from workers.data.findings import Findings, listed

_ROWS = 10_000  # evenly spaced
_COLUMNS = 1000
_NEARLY = 0.999  # of a correlation, either way
_LEAST_ROWS = 20


def warn_of_correlated(lazy: pl.LazyFrame, entries: list[dict[str, Any]], rows: int, findings: Findings) -> None:
    """Warn of columns whose correlation is nearly 1 or -1, unless they are equal, which is said elsewhere.

    Args:
        lazy: the table, its row ids first.
        entries: of the profile, in the table's order.
        rows: of the table.
        findings: gets the warnings.
    """
    at = [i for i, e in enumerate(entries) if e["type"] in {"integer", "number"} and e["unique"] > 2][:_COLUMNS]  # noqa: PLR2004 - two values are a flag
    if len(at) < 2 or rows < _LEAST_ROWS:  # noqa: PLR2004 - a pair
        return
    sample = lazy.select(pl.nth([i + 1 for i in at])).gather_every(max(rows // _ROWS, 1)).collect(engine="streaming")
    x = np.stack([column.cast(pl.Float64).to_numpy() for column in sample.get_columns()], axis=1)
    standard = _standardised(x)
    related = np.abs(standard.T @ standard) > _NEARLY
    for group in _groups(related):
        names = [entries[at[j]]["name"] for j in group]
        if not all(np.array_equal(x[:, group[0]], x[:, j], equal_nan=True) for j in group[1:]):
            findings.warn(
                f"columns {listed(names, 10)} rise and fall together (correlation above {_NEARLY}); one is enough, and "
                "if one is the target, drop the others, which give it away"
            )


def _standardised(x: "np.ndarray[Any, np.dtype[np.float64]]") -> "np.ndarray[Any, np.dtype[np.float64]]":
    """Columns of mean 0 and length 1; a gap counts as the mean, and so does a column without a spread."""
    x = np.where(np.isfinite(x), x, np.nan)
    present = ~np.isnan(x)
    with np.errstate(all="ignore"):
        scale = np.nanmax(np.abs(np.where(present.any(axis=0), x, 0.0)), axis=0)
        x = x / np.where(scale > 0, scale, 1.0)  # so that no square is beyond a double
        x = np.where(present, x - np.where(present, x, 0.0).sum(axis=0) / np.maximum(present.sum(axis=0), 1), 0.0)
        length = np.sqrt((x**2).sum(axis=0))
        return np.asarray(np.where(length > 0, x / length, 0.0))


def _groups(related: "np.ndarray[Any, np.dtype[np.bool_]]") -> list[list[int]]:
    """Each column with later ones that are related to it, none twice."""
    found, seen = [], set[int]()
    for j in range(len(related)):
        group = [int(k) for k in np.flatnonzero(related[j]) if k not in seen and k >= j]
        if len(group) > 1:
            found.append(group)
            seen.update(group)
    return found
