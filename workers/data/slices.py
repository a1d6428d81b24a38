"""The slice of each row: the value of a category column, or the quarter that a number or date lies in."""

from collections import Counter
from itertools import pairwise

import numpy as np
import polars as pl

from workers.data.findings import shorten
from workers.data.values import as_text
from workers.learning import Array

MISSING, OTHERS = "(missing)", "(other values)"
_MOST = 20  # values of a column that are slices of their own
_WIDTH = 60
_QUARTERS = [0.25, 0.5, 0.75]


def slice_labels(column: pl.Series) -> Array:
    """Text [N], as objects. Numbers and dates of more than 20 values are cut into quarters of the rows."""
    column = column.alias("")  # some names are patterns to polars
    column = column.fill_nan(None) if column.dtype.is_float() else column
    if (column.dtype.is_numeric() or column.dtype.is_temporal()) and column.n_unique() > _MOST:
        return _quarters(column)
    texts = [MISSING if text is None else shorten(text, _WIDTH) for text in as_text(column).to_list()]
    frequent = {text for text, _ in Counter(texts).most_common(_MOST)}
    return np.asarray([text if text in frequent else OTHERS for text in texts], object)


def _quarters(column: pl.Series) -> Array:
    physical = column.to_physical().cast(pl.Float64)
    edges = np.unique([physical.quantile(share, "lower") for share in _QUARTERS])  # values that occur
    shown = [as_text(column.filter(physical == edge).head(1))[0] for edge in edges]
    names = [f"up to {shown[0]}", *(f"over {low} up to {high}" for low, high in pairwise(shown))]
    names.append(f"over {shown[-1]}")
    missing = physical.is_null().to_numpy()
    at = np.searchsorted(edges, physical.fill_null(0.0).to_numpy(), side="left")
    labels = np.asarray(names, object)[at]
    labels[missing] = MISSING
    return np.asarray(labels)
