"""Prediction intervals as part of a regressor's graph."""

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from app.core.signature import Signature, Tensor
from workers.export.graph import Graph

VALUE, LOWER, UPPER = "value", "lower", "upper"


def with_bounds(model: onnx.ModelProto, offsets: tuple[float, float]) -> onnx.ModelProto:
    """The same graph with the outputs `lower` and `upper` FP32 [N]: its `value` plus either offset."""
    widened = onnx.ModelProto()
    widened.CopyFrom(model)
    graph = widened.graph
    for name, offset in zip((LOWER, UPPER), offsets, strict=True):
        constant = f"{name}.offset"
        graph.initializer.append(numpy_helper.from_array(np.asarray([offset], np.float32), constant))
        graph.node.append(helper.make_node("Add", [VALUE, constant], [name]))
        output = onnx.ValueInfoProto()
        output.CopyFrom(graph.output[0])
        output.name = name
        graph.output.append(output)
    onnx.checker.check_model(widened)
    return widened


def with_scaled_bounds(
    model: onnx.ModelProto, spread: onnx.ModelProto, offsets: tuple[float, float], signature: Signature
) -> onnx.ModelProto:
    """Both models in one graph: its `value`, plus either offset times the exponential of what `spread` says.

    `signature` has the inputs, which both models share, and the three outputs.
    """
    graph = Graph()
    value = graph.add("Identity", graph.include(model, "model"), output=VALUE)
    scale = graph.add("Exp", graph.include(spread, "spread"))
    for name, offset in zip((LOWER, UPPER), offsets, strict=True):
        far = graph.add("Mul", scale, graph.constant([offset], np.float32))
        graph.add("Add", value, far, output=name)
    joined = graph.model(signature.inputs, signature.outputs)
    joined.metadata_props.extend(model.metadata_props)
    return joined


def bound_tensors(value: Tensor) -> Iterable[Tensor]:
    """What the signature says of the three outputs."""
    return (Tensor(name, value.datatype, value.shape) for name in (VALUE, LOWER, UPPER))
