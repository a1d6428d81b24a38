"""Large matrices as products of two small ones (truncated singular value decomposition)."""

from collections.abc import Mapping, Sequence

import onnx
from onnx import helper, numpy_helper

from workers.compression.graphs import Model, add_weight, copied, users_of, weights_of
from workers.training.factors import SMALLEST, factors


def low_rank(model: Model, energy: float) -> tuple[Model, int]:
    """Factor every constant matrix of a MatMul or Gemm that gets smaller by it.

    Args:
        model: any.
        energy: share of the sum of squared singular values that is kept, 0 … 1.

    Returns:
        The changed model, and how many matrices were factored.
    """
    model = copied(model)
    weights, users = weights_of(model), users_of(model)
    nodes: list[onnx.NodeProto] = []
    count = 0
    for node in model.graph.node:
        replaced = _factored(model, node, weights, energy) if _is_large_product(node, weights, users) else [node]
        count += len(replaced) > 1
        nodes += replaced
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model, count


def share_of_products(model: Model) -> float:
    """Of the bytes of all constants: those of the matrices that `low_rank` looks at, whatever their rank."""
    weights, users = weights_of(model), users_of(model)
    sizes = {name: tensor.ByteSize() for name, tensor in weights.items()}
    looked_at = sum(sizes[_matrix(node)] for node in model.graph.node if _is_large_product(node, weights, users))
    return looked_at / max(1, sum(sizes.values()))


def _matrix(node: onnx.NodeProto) -> str:
    return str(node.input[1]) if node.op_type in {"MatMul", "Gemm"} else ""


def _is_large_product(
    node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto], users: Mapping[str, Sequence[onnx.NodeProto]]
) -> bool:
    """With a matrix of its own, of floats, that may be worth two."""
    name = _matrix(node)
    tensor = weights.get(name)
    if tensor is None or len(users[name]) != 1 or len(tensor.dims) != 2 or min(tensor.dims) < SMALLEST:  # noqa: PLR2004 - a matrix
        return False
    turned = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return not turned and bool(tensor.data_type == onnx.TensorProto.FLOAT)


def _factored(
    model: Model, node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto], energy: float
) -> list[onnx.NodeProto]:
    """The node, or the two that stand for it."""
    tensor = weights[_matrix(node)]
    settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    matrix = numpy_helper.to_array(tensor)
    found = factors(matrix.T if settings.get("transB") else matrix, energy)
    if found is None:
        return [node]
    base = tensor.name
    left, right = (add_weight(model, f"{base}/{n}", v) for n, v in (("left", found.left), ("right", found.right)))
    between = f"{node.output[0]}/between"
    first = helper.make_node("MatMul", [node.input[0], left], [between], name=f"{node.name or base}/left")
    second = helper.make_node(node.op_type, [between, right, *node.input[2:]], list(node.output), name=node.name)
    second.attribute.extend(a for a in node.attribute if a.name in {"alpha", "beta"})
    return [first, second]
