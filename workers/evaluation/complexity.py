"""How large a model is: numbers that were learned, work for a row, bytes."""

from math import prod
from typing import Any

import onnx

TREE_OPERATORS = frozenset({"TreeEnsembleRegressor", "TreeEnsembleClassifier", "TreeEnsemble"})


def complexity(model: bytes) -> dict[str, Any]:
    """Of a serialised graph.

    Returns:
        `parameters` (elements of the initializers), `bytes`; of tree ensembles `trees` and `tree_nodes`; where every
        product of matrices and convolution has known shapes, `macs`, the multiplications and additions for one row.
    """
    graph = onnx.load_from_string(model).graph
    sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    found: dict[str, Any] = {"parameters": sum(prod(shape) for shape in sizes.values()), "bytes": len(model)}
    trees = [node for node in graph.node if node.op_type in TREE_OPERATORS]
    if trees:
        found["trees"] = sum(len(set(_ints(node, "nodes_treeids"))) for node in trees)
        found["tree_nodes"] = sum(len(_ints(node, "nodes_nodeids")) for node in trees)
    macs = _macs(model, graph, sizes)
    return found if macs is None else found | {"macs": macs}


def _macs(model: bytes, graph: Any, sizes: dict[str, tuple[int, ...]]) -> int | None:  # noqa: ANN401 - a GraphProto
    """None where the output of a convolution has no known size, or a graph multiplies nothing that was learned."""
    total, shapes = 0, None
    for node in graph.node:
        weights = next((sizes[name] for name in node.input if len(sizes.get(name, ())) > 1), None)
        if weights is None or node.op_type not in {"Gemm", "MatMul", "Conv"}:
            continue
        if node.op_type == "Conv":
            shapes = _shapes(model) if shapes is None else shapes
            positions = prod(shapes.get(node.output[0], (0,))[2:]) if node.output[0] in shapes else 0
            if positions <= 0:
                return None
            total += prod(weights) * positions
        else:
            total += prod(weights)
    return total or None


def _shapes(model: bytes) -> dict[str, tuple[int, ...]]:
    """What shape inference finds; 0 for an axis that it does not."""
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(model)).graph
    return {
        value.name: tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.output)
    }


def _ints(node: Any, name: str) -> list[int]:  # noqa: ANN401 - a NodeProto
    return next((list(attribute.ints) for attribute in node.attribute if attribute.name == name), [])
