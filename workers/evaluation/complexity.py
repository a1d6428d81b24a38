"""How large a model is: numbers that were learned, work for a row, bytes."""

import re
from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Any

import onnx
from onnx import NodeProto

from workers.evaluation.shapes import Shape, attention_widths, attributes_of, shapes_of_a_row
from workers.export.graph import ORT

TREE_OPERATORS = frozenset({"TreeEnsembleRegressor", "TreeEnsembleClassifier", "TreeEnsemble"})
# Operators that multiply matrices by their names, known here or not; of the latter nothing can be said.
_MULTIPLIES = re.compile(r"MatMul|Gemm|Conv|Attention|Einsum|LSTM|GRU|RNN|MoE|^Linear(Classifier|Regressor)|^SVM")
_Shapes = Mapping[str, Shape]


def complexity(model: bytes) -> dict[str, Any]:
    """Of a serialised graph.

    Returns:
        `parameters` (elements of the initializers), `bytes`; of tree ensembles `trees` and `tree_nodes`; where every
        product of matrices and convolution has known shapes, `macs`, the multiplications and additions for one row, and
        `macs_of`, which row that is, where rows differ in length.
    """
    loaded = onnx.load_from_string(model)
    graph = loaded.graph
    found: dict[str, Any] = {"parameters": sum(prod(tensor.dims) for tensor in graph.initializer), "bytes": len(model)}
    trees = [node for node in graph.node if node.op_type in TREE_OPERATORS]
    if trees:
        found["trees"] = sum(len(set(_ints(node, "nodes_treeids"))) for node in trees)
        found["tree_nodes"] = sum(len(_ints(node, "nodes_nodeids")) for node in trees)
    return found | _macs(loaded)


def _macs(model: onnx.ModelProto) -> dict[str, Any]:
    """Nothing where a graph multiplies nothing, or the work of a node that does is not known."""
    multiplying = [node for node in model.graph.node if _MULTIPLIES.search(node.op_type)]
    repeated = any(_MULTIPLIES.search(node.op_type) for node in _inner(model))
    if not multiplying or repeated or any(_key(node) not in _COUNTS for node in multiplying):
        return {}
    shapes, assumed = shapes_of_a_row(model)
    counts = [_COUNTS[_key(node)](node, shapes) for node in multiplying]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return {}
    told = {} if assumed is None else {"macs_of": f"a row of {assumed} tokens, the most that are read"}
    return {"macs": sum(known), **told}


def _key(node: NodeProto) -> tuple[str, str]:
    return "" if node.domain == "ai.onnx" else node.domain, node.op_type


def _inner(model: onnx.ModelProto) -> Iterator[NodeProto]:
    """Nodes that run who knows how often: those of branches, of loops, and of functions."""
    for function in model.functions:
        yield from function.node
    for node in model.graph.node:
        yield from _below(node)


def _below(node: NodeProto) -> Iterator[NodeProto]:
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield inner
                yield from _below(inner)


def _known(shapes: _Shapes, *names: str) -> list[Shape] | None:
    """The shapes of these values, if each axis of each has a size."""
    found = [shapes[name] for name in names if name in shapes and all(shapes[name])]
    return found if len(found) == len(names) else None


def _product(node: NodeProto, shapes: _Shapes) -> int | None:
    """Each number of the result is a sum over the last axis of what is on the left."""
    if (sizes := _known(shapes, node.input[0], node.output[0])) is None:
        return None
    left, result = sizes
    return prod(result) * left[-2 if attributes_of(node).get("transA") else -1]


def _convolution(node: NodeProto, shapes: _Shapes) -> int | None:
    """Each number of the result is a sum over a filter, of the channels of its group."""
    if (sizes := _known(shapes, node.input[1], node.output[0])) is None:
        return None
    filters, result = sizes
    return prod(result) * prod(filters[1:])


def _recurrent(node: NodeProto, shapes: _Shapes) -> int | None:
    """All weights at each step, those of both directions."""
    if (sizes := _known(shapes, *node.input[:3])) is None:
        return None
    rows, inputs, states = sizes
    return prod(rows[:2]) * (prod(inputs) + prod(states))


def _attention(node: NodeProto, shapes: _Shapes) -> int | None:
    """Queries, keys and values of each token; then each token with each, and the sum of their values."""
    past = _PAST[node.op_type]
    sizes = None if len(node.input) > past and node.input[past] else _known(shapes, *node.input[:2])
    if sizes is None:
        return None
    (rows, tokens, width), weights = sizes
    queries, _, values = attention_widths(node, weights)
    return rows * tokens * (width * weights[1] + tokens * (queries + values))


_PAST = {"Attention": 4, "QAttention": 8}  # the place of the input that brings tokens of before
_COUNTS: dict[tuple[str, str], Callable[[NodeProto, _Shapes], int | None]] = {
    ("", "MatMul"): _product, ("", "Gemm"): _product, ("", "MatMulInteger"): _product, ("", "Conv"): _convolution,
    ("", "LSTM"): _recurrent, ("", "GRU"): _recurrent, (ORT, "FusedMatMul"): _product, (ORT, "MatMulNBits"): _product,
    (ORT, "MatMulIntegerToFloat"): _product, (ORT, "Attention"): _attention, (ORT, "QAttention"): _attention,
}  # fmt: skip


def _ints(node: NodeProto, name: str) -> list[int]:
    return next((list(attribute.ints) for attribute in node.attribute if attribute.name == name), [])
