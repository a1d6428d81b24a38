"""Statistics of a number by category, of training rows: a look-up table in the graph."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from app.core.signature import ColumnType
from app.specs.features import Aggregate
from workers.features.categories import rows_of_table
from workers.features.fitting import Fitting
from workers.features.stage import Stage
from workers.learning import Array

Made = tuple[list[Stage], dict[str, Any]]


def _std(values: Array) -> float:
    """Of a sample, as SQL's stddev; one value has none."""
    return float(values.std(ddof=1)) if len(values) > 1 else np.nan


_FUNCTIONS: Mapping[str, Callable[[Array], float]] = {
    "mean": np.mean, "std": _std, "min": np.min, "max": np.max, "count": len, "median": np.median,
}  # fmt: skip


def aggregate(step: Aggregate, on: Fitting) -> Made:
    """One column a function. What a category cannot tell (it is unseen, or has no value) is that of all rows."""
    by = on.find("categorical", ("by",), step.by)
    column = on.find("numeric", ("column",), step.column)
    keys = on.table.tensors["categorical"][:, by].astype(str)
    values = on.present([column])[:, 0]
    keys, values = keys[~np.isnan(values)], values[~np.isnan(values)]
    order = np.argsort(keys, kind="stable")
    known, starts = np.unique(keys[order], return_index=True)
    groups = np.split(values[order], starts[1:])
    table = np.asarray([[_FUNCTIONS[name](group) for name in step.functions] for group in [*groups, values]])
    overall = np.where(np.asarray(step.functions) == "count", 0.0, table[-1])
    table = np.where(np.isnan(table), overall, np.vstack([table[:-1], overall]))
    rows = [np.arange(len(table), dtype=np.int64)]
    made: tuple[tuple[str, ColumnType], ...] = tuple(
        (f"{step.column} {name} by {step.by}", "integer" if name == "count" else "number") for name in step.functions
    )
    nodes = rows_of_table((tuple(known.tolist()),), rows, table)
    told = [None if np.isnan(value) else value for value in overall.tolist()]  # JSON has no NaN
    facts = {"categories": len(known), "of_all_rows": dict(zip(step.functions, told, strict=True))}
    return [Stage("categorical", (by,), (), made, "numeric", nodes)], facts
