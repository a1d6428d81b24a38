"""Small changes of graphs that several recipes share."""

import onnx
from onnx import numpy_helper

from workers.learning import Array

Model = onnx.ModelProto
TREES = "TreeEnsembleRegressor"
PRODUCTS = frozenset({"MatMul", "Gemm"})


def copied(model: Model) -> Model:
    """A model of its own, to be changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def operators_of(model: Model) -> frozenset[str]:
    """Types of the nodes."""
    return frozenset(node.op_type for node in model.graph.node)


def weights_of(model: Model) -> dict[str, onnx.TensorProto]:
    """Initializers by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def users_of(model: Model) -> dict[str, list[onnx.NodeProto]]:
    """The nodes that read a tensor, by its name."""
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in set(node.input):
            users.setdefault(name, []).append(node)
    return users


def add_weight(model: Model, name: str, value: Array) -> str:
    """A further initializer; its name."""
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def with_names(model: Model) -> Model:
    """Every node has a name of its own, as quantizers tell nodes by them."""
    taken = {node.name for node in model.graph.node}
    for at, node in enumerate(model.graph.node):
        if not node.name:
            node.name = next(n for i in range(at, at + len(taken) + 2) if (n := f"{node.op_type}_{i}") not in taken)
            taken.add(node.name)
    return model
