"""Steps on single numbers: clip, impute, scale, bin."""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.preprocessing import KBinsDiscretizer, MinMaxScaler, PowerTransformer, RobustScaler, StandardScaler

from app.core.signature import ColumnType
from app.specs.features import Bin, Clip, Impute, Scale
from workers.export.graph import Graph
from workers.features.fitting import Fitting
from workers.features.stage import Nodes, Stage, doubles
from workers.learning import Array

Made = tuple[list[Stage], dict[str, Any]]
_INTEGER, _TEXT, _DOUBLE = 7, 8, 11  # ONNX element types
_NEARLY_ZERO = 1e-4  # a power this near to the logarithm is moved away from it
_SCALERS: dict[str, Any] = {
    "standard": StandardScaler, "min_max": MinMaxScaler, "robust": RobustScaler, "yeo_johnson": PowerTransformer
}  # fmt: skip


def clip(step: Clip, on: Fitting) -> Made:
    """Bounds as given or by training rows; a missing value stays missing."""
    columns = on.numbers()
    x = on.present(columns)
    low, high = _bounds(step, x)

    def nodes(graph: Graph, name: str) -> str:
        for op, bound in (("Less", low), ("Greater", high)):
            limit = doubles(graph, bound)
            name = graph.add("Where", graph.add(op, name, limit), limit, name)
        return name

    clipped = (x < low) | (x > high)
    bounds = {
        name: [float(b) if np.isfinite(b) else None for b in pair]
        for name, *pair in zip(on.names("numeric", columns), low, high, strict=True)
    }
    return [on.in_place("numeric", columns, nodes)], {"clipped": _counts(on, columns, clipped), "bounds": bounds}


def _bounds(step: Clip, x: Array) -> tuple[Array, Array]:
    if step.quantiles is not None:
        low, high = np.nanquantile(x, step.quantiles, axis=0)
    elif step.iqr is not None:
        low, high = np.nanquantile(x, [0.25, 0.75], axis=0)
        low, high = low - step.iqr * (high - low), high + step.iqr * (high - low)
    else:
        low = np.full(x.shape[1], -np.inf if step.low is None else step.low)
        high = np.full(x.shape[1], np.inf if step.high is None else step.high)
    return low, high


def _counts(on: Fitting, columns: tuple[int, ...], cells: Array) -> dict[str, int]:
    """Cells by column, of columns that have any."""
    counts = zip(on.names("numeric", columns), cells.sum(axis=0).tolist(), strict=True)
    return {name: count for name, count in counts if count}


def impute_numbers(step: Impute, on: Fitting) -> Made:
    """Columns that are named, or that have gaps in training rows."""
    gaps = np.isnan(on.table.tensors["numeric"])
    columns = on.to_fill("numeric", gaps)
    if not columns:
        return [], {}
    fill = _fill(step, on, columns)

    def flags(graph: Graph, name: str) -> str:
        return graph.add("Cast", graph.add("IsNaN", name), to=_DOUBLE)

    def nodes(graph: Graph, name: str) -> str:
        return graph.add("Where", graph.add("IsNaN", name), doubles(graph, fill), name)

    named = on.names("numeric", columns)
    stages = [on.in_place("numeric", columns, nodes)]
    if step.flag:
        made: tuple[tuple[str, ColumnType], ...] = tuple((f"{name} missing", "boolean") for name in named)
        stages.insert(0, Stage("numeric", columns, (), made, "numeric", flags))
    facts = {"filled": _counts(on, columns, gaps[:, columns]), "values": dict(zip(named, fill.tolist(), strict=True))}
    return stages, facts


def _fill(step: Impute, on: Fitting, columns: tuple[int, ...]) -> Array:
    if step.strategy == "constant":
        return np.full(len(columns), step.value, np.float64)
    x = on.present(columns)
    if step.strategy == "most_frequent":
        found = [np.unique(column[~np.isnan(column)], return_counts=True) for column in x.T]
        return np.asarray([values[counts.argmax()] for values, counts in found])
    return np.nanmedian(x, axis=0) if step.strategy == "median" else np.nanmean(x, axis=0)


def scale(step: Scale, on: Fitting) -> Made:
    """As scikit-learn's scalers of the same names."""
    columns = on.numbers()
    x = on.present(columns)
    if step.method == "log1p":
        for name, low in zip(on.names("numeric", columns), np.nanmin(x, axis=0), strict=True):
            if low <= -1:
                on.refuse(f"'{name}' goes down to {low:g}, and log1p takes numbers above -1; use yeo_johnson", "method")
        return [on.in_place("numeric", columns, _log1p, "number")], {}
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of columns of one value
        scaler = _SCALERS[step.method]().fit(x)
    if step.method == "yeo_johnson":
        powers = np.where(np.isfinite(scaler.lambdas_), scaler.lambdas_, 1.0)
        nodes = _yeo_johnson(powers, scaler._scaler.mean_, scaler._scaler.scale_)  # noqa: SLF001 - it tells in no other way
        facts: dict[str, Any] = {"powers": dict(zip(on.names("numeric", columns), powers.tolist(), strict=True))}
        return [on.in_place("numeric", columns, nodes, "number")], facts
    if step.method == "min_max":
        shift, factor = -scaler.min_ / scaler.scale_, scaler.scale_
    else:
        shift, factor = scaler.mean_ if step.method == "standard" else scaler.center_, 1 / scaler.scale_
    return [on.in_place("numeric", columns, _linear(shift, factor), "number")], {}


def _linear(shift: Array, factor: Array) -> Nodes:
    def nodes(graph: Graph, name: str) -> str:
        return graph.add("Mul", graph.add("Sub", name, doubles(graph, shift)), doubles(graph, factor))

    return nodes


def _log1p(graph: Graph, name: str) -> str:
    """A number of -1 and below, which training rows do not have, becomes missing."""
    more = graph.add("Add", name, doubles(graph, 1.0))
    legal = graph.add("Greater", more, doubles(graph, 0.0))
    return graph.add("Log", graph.add("Where", legal, more, doubles(graph, np.nan)))


def _yeo_johnson(powers: Array, mean: Array, spread: Array) -> Nodes:
    """((1 + x)^p - 1) / p above zero, -((1 - x)^(2 - p) - 1) / (2 - p) below (Yeo and Johnson 2000), standardised."""
    above = np.where(np.abs(powers) < _NEARLY_ZERO, _NEARLY_ZERO, powers)
    below = np.where(np.abs(2 - powers) < _NEARLY_ZERO, _NEARLY_ZERO, 2 - powers)

    def branch(graph: Graph, size: str, power: Array) -> str:
        raised = graph.add("Pow", graph.add("Add", size, doubles(graph, 1.0)), doubles(graph, power))
        return graph.add("Div", graph.add("Sub", raised, doubles(graph, 1.0)), doubles(graph, power))

    def nodes(graph: Graph, name: str) -> str:
        negative = graph.add("Less", name, doubles(graph, 0.0))
        size = graph.add("Abs", name)
        parts = branch(graph, size, above), graph.add("Neg", branch(graph, size, below))
        return _linear(mean, 1 / spread)(graph, graph.add("Where", negative, parts[1], parts[0]))

    return nodes


def bins(step: Bin, on: Fitting) -> Made:
    """Edges as scikit-learn's KBinsDiscretizer finds them."""
    columns = on.numbers()
    inner = [_edges(step, column[~np.isnan(column)]) for column in on.present(columns).T]
    most = max(1, *map(len, inner))
    edges = np.full((len(inner), most), np.inf)
    for row, known in zip(edges, inner, strict=True):
        row[: len(known)] = known

    def nodes(graph: Graph, name: str) -> str:
        cells = graph.add("Unsqueeze", name, graph.constant([2], np.int64))
        reached = graph.add("Cast", graph.add("GreaterOrEqual", cells, doubles(graph, edges)), to=_DOUBLE)
        number = graph.add("ReduceSum", reached, graph.constant([2], np.int64), keepdims=0)
        missing = graph.add("IsNaN", name)
        if step.output == "number":
            return graph.add("Where", missing, name, number)
        text = graph.add("Cast", graph.add("Cast", number, to=_INTEGER), to=_TEXT)
        return graph.add("Where", missing, graph.constant(np.asarray([""], object), object), text)

    found = {name: len(known) + 1 for name, known in zip(on.names("numeric", columns), inner, strict=True)}
    type_: ColumnType = "category" if step.output == "category" else "integer"
    stage = replace(on.in_place("numeric", columns, nodes, type_), cells=edges.size)
    return [stage], {"bins": found}


def _edges(step: Bin, values: Array) -> Array:
    """Between the bins: fewer than asked for where values repeat."""
    if values.min() == values.max():
        return np.zeros(0)
    how: dict[str, Any] = {"quantile_method": "averaged_inverted_cdf"} if step.strategy == "quantile" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bins that fall together
        found = KBinsDiscretizer(
            step.bins, encode="ordinal", strategy=step.strategy, subsample=200_000, random_state=0, **how
        ).fit(values[:, None])
    return np.asarray(found.bin_edges_[0][1:-1])
