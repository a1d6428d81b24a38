"""Prediction intervals as part of a regressor's graph."""

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from app.core.signature import Tensor

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


def bound_tensors(value: Tensor) -> Iterable[Tensor]:
    """What the signature says of the three outputs."""
    return (Tensor(name, value.datatype, value.shape) for name in (VALUE, LOWER, UPPER))
