"""SQL's operators as nodes over FP64, where NaN is NULL and a truth value is 1, 0 or NaN.

Each takes the names of tensors that broadcast with [N, 1] and gives the name of such a one.
"""

import numpy as np

from workers.export.graph import Graph
from workers.features.stage import doubles

_DOUBLE = 11  # ONNX element type
_LARGEST = float(np.finfo(np.float64).max)


def arithmetic(graph: Graph, *parts: str, op: str) -> str:
    """What is no finite number is NULL, as a division by zero."""
    found = graph.add(op, *parts)
    finite = graph.add("LessOrEqual", graph.add("Abs", found), doubles(graph, _LARGEST))
    return graph.add("Where", finite, found, doubles(graph, np.nan))


def rounded(graph: Graph, x: str) -> str:
    """Halves away from zero, as DuckDB; ONNX rounds them to even."""
    size = graph.add("Abs", x)
    whole = graph.add("Floor", size)
    half = graph.add("GreaterOrEqual", graph.add("Sub", size, whole), doubles(graph, 0.5))
    away = graph.add("Add", whole, graph.add("Cast", half, to=_DOUBLE))
    return graph.add("Where", graph.add("Less", x, doubles(graph, 0.0)), graph.add("Neg", away), away)


def null_if(graph: Graph, x: str, null: str) -> str:
    """`x` unless it is `null`."""
    return graph.add("Where", graph.add("Equal", x, null), doubles(graph, np.nan), x)


def coalesce(graph: Graph, x: str, other: str) -> str:
    """`x` unless it is NULL."""
    return graph.add("Where", graph.add("IsNaN", x), other, x)


def extreme(graph: Graph, x: str, y: str, *, op: str) -> str:
    """`Min` or `Max` of those that are not NULL."""
    return graph.add(op, coalesce(graph, x, y), coalesce(graph, y, x))


def is_null(graph: Graph, x: str) -> str:
    """Never NULL."""
    return graph.add("Cast", graph.add("IsNaN", x), to=_DOUBLE)


def test(graph: Graph, x: str, y: str, *, op: str) -> str:
    """A comparison; NULL if either side is."""
    found = graph.add("Cast", graph.add(op, x, y), to=_DOUBLE)
    missing = graph.add("Or", graph.add("IsNaN", x), graph.add("IsNaN", y))
    return graph.add("Where", missing, doubles(graph, np.nan), found)


def between(graph: Graph, x: str, low: str, high: str) -> str:
    """With both bounds."""
    return both(graph, test(graph, x, low, op="GreaterOrEqual"), test(graph, x, high, op="LessOrEqual"))


def negation(graph: Graph, x: str) -> str:
    """NULL stays NULL."""
    return graph.add("Where", graph.add("IsNaN", x), x, graph.add("Cast", _is(graph, x, 0.0), to=_DOUBLE))


def both(graph: Graph, x: str, y: str) -> str:
    """False if either is; else NULL if either is."""
    false = graph.add("Or", _is(graph, x, 0.0), _is(graph, y, 0.0))
    return graph.add("Where", false, doubles(graph, 0.0), graph.add("Mul", x, y))


def either(graph: Graph, x: str, y: str) -> str:
    """True if either is; else NULL if either is."""
    return negation(graph, both(graph, negation(graph, x), negation(graph, y)))


def choose(graph: Graph, condition: str, yes: str, no: str) -> str:
    """`no` unless the condition is true: so also where it is NULL."""
    return graph.add("Where", _is(graph, condition, 1.0), yes, no)


def is_text(graph: Graph, cell: str, text: str) -> str:
    """Booleans: where a column of categories has this value."""
    return graph.add("Equal", cell, graph.constant(np.asarray([text], object), object))


def _is(graph: Graph, x: str, value: float) -> str:
    return graph.add("Equal", x, doubles(graph, value))
