"""A small builder of ONNX graphs, for models whose every node is known."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from app.core.signature import Datatype, Tensor

OPSET = 21
ML_OPSET = 3
IR_VERSION = 10
ML = "ai.onnx.ml"
ORT = "com.microsoft"  # operators of ONNX Runtime itself
_ELEMENT_TYPES: dict[Datatype, int] = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


class Graph:
    """Collects nodes and constants; every value is known by its name.

    They are put into the model at once: to copy them later would take the memory of a forest once more each time.
    """

    def __init__(self) -> None:
        self._model = onnx.ModelProto()
        self._nodes, self._constants = self._model.graph.node, self._model.graph.initializer

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike) -> str:
        """Add a constant tensor and return its name."""
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(value, dtype, order="C"), name))
        return name

    def add(
        self,
        op: str,
        *inputs: str,
        domain: str = "",
        output: Any = None,  # noqa: ANN401 - a name; typed, no attributes could be handed on as a dictionary
        skipped: Any = 0,  # noqa: ANN401 - a number; the same
        columns: Any = None,  # noqa: ANN401 - long attributes by name, each as a list of arrays; the same
        **attributes: Any,  # noqa: ANN401 - any ONNX attribute
    ) -> str:
        """Add a node and return the name of its output, before which it has `skipped` others that nobody reads."""
        name = output or f"v{len(self._nodes)}"
        others = [f"{name}.skipped{place}" for place in range(skipped)]
        self._nodes.append(helper.make_node(op, list(inputs), [*others, name], domain=domain, **attributes))
        for column, arrays in (columns or {}).items():
            _fill(self._nodes[-1].attribute.add(name=column), arrays)
        return name

    def include(self, model: onnx.ModelProto, prefix: str, inputs: Mapping[str, str] | None = None) -> str:
        """Add the nodes of a model of the same opsets, without subgraphs; returns its output's name.

        `inputs` says which value is which of the model's inputs; without it they have the same names.
        """
        shared = {value.name: value.name for value in model.graph.input} | {"": ""} | dict(inputs or {})

        def renamed(name: str) -> str:
            return shared.get(name, f"{prefix}.{name}")

        for tensor in model.graph.initializer:
            tensor.name = renamed(tensor.name)
            self._constants.append(tensor)
        for node in model.graph.node:
            node.input[:] = [renamed(name) for name in node.input]
            node.output[:] = [renamed(name) for name in node.output]
            node.name = f"{prefix}.{node.name}" if node.name else ""
            self._nodes.append(node)
        return renamed(model.graph.output[0].name)

    def model(self, inputs: Iterable[Tensor], outputs: Iterable[Tensor]) -> onnx.ModelProto:
        """The checked model, with which the graph is done. Variable axes are named, the first one `batch`."""
        known = [  # onnx knows no Tokenizer, and its shape inference crashes on a LabelEncoder of unknown type
            helper.make_tensor_value_info(node.output[0], TensorProto.STRING, [None] * 3)
            for node in self._nodes
            if node.op_type == "Tokenizer"
        ]
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(ML, ML_OPSET)]
        if any(node.domain == ORT for node in self._nodes):
            opsets.append(helper.make_opsetid(ORT, 1))
        ends = helper.make_graph(
            [], "model", [_value_info(t) for t in inputs], [_value_info(t) for t in outputs], value_info=known
        )
        self._model.MergeFrom(
            helper.make_model(ends, opset_imports=opsets, ir_version=IR_VERSION, producer_name="aimass")
        )
        onnx.checker.check_model(self._model)
        return self._model


def binary_probabilities(graph: Graph, score: str, *, is_probability: bool) -> str:
    """From the second class's logit or probability [N, 1] to the output `probabilities` [N, 2]."""
    second = score if is_probability else graph.add("Sigmoid", score)
    first = graph.add("Sub", graph.constant([1.0], np.float32), second)
    return graph.add("Concat", first, second, axis=1, output="probabilities")


def value_output(graph: Graph, score: str, mean: float, scale: float) -> str:
    """From a standardised prediction [N, 1] to the output `value` [N] in the target's own unit."""
    scaled = graph.add("Mul", score, graph.constant([scale], np.float32))
    shifted = graph.add("Add", scaled, graph.constant([mean], np.float32))
    return graph.add("Reshape", shifted, graph.constant([-1], np.int64), output="value")


def _fill(attribute: onnx.AttributeProto, arrays: Iterable[npt.NDArray[Any]]) -> None:
    """Array by array, so that Python's objects are those of one at a time."""
    for array in arrays:
        match array.dtype.kind:
            case "f":
                attribute.type = onnx.AttributeProto.FLOATS
                attribute.floats.extend(array.tolist())
            case "S":
                attribute.type = onnx.AttributeProto.STRINGS
                attribute.strings.extend(array.tolist())
            case _:
                attribute.type = onnx.AttributeProto.INTS
                attribute.ints.extend(array.tolist())


def _value_info(tensor: Tensor) -> onnx.ValueInfoProto:
    shape = [size if size >= 0 else ("batch" if axis == 0 else f"axis{axis}") for axis, size in enumerate(tensor.shape)]
    return helper.make_tensor_value_info(tensor.name, _ELEMENT_TYPES[tensor.datatype], shape)
