"""Shapes that the values of a graph have for one row: what ONNX infers, once it is told of ONNX Runtime's operators."""

from collections.abc import Callable, Mapping
from math import ceil, prod
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from workers.export.graph import ORT
from workers.learning import Array

Shape = tuple[int, ...]  # 0: an axis of unknown size
_SMALL = 1024  # numbers of a constant that may say a shape; a larger one is known by its own shape alone
_LONG = 4096  # entries of an attribute, as trees have; no shape follows from them
_ENDLESS = 1 << 31  # an end that cuts nothing off
_PASSES = 16  # of inference, after each of which more is known
_ARITHMETIC = frozenset({
    "Add", "Cast", "Concat", "Div", "Equal", "Gather", "Max", "Min", "Mul", "Neg", "Range", "Reshape", "Slice",
    "Squeeze", "Sub", "Unsqueeze", "Where",
})  # fmt: skip
_Values = Mapping[str, ValueInfoProto]


def shapes_of_a_row(model: onnx.ModelProto) -> tuple[dict[str, Shape], int | None]:
    """Shapes of the values whose number of axes is inferred, where each input has one row.

    How many tokens a row has, no graph says. Where it cuts them off at a constant, as those exported here do, a row is
    taken to have as many as that.

    Returns:
        The shapes by name, and the most that rows were so taken to have; None where nothing was taken so.
    """
    light, assumed = _light(model), None
    for _ in range(_PASSES):
        values = _inferred(light)
        if _work_out(light, values):
            continue
        if (cut := _first_cut(light, values)) is None:
            break
        value, most = cut
        light.graph.value_info.append(value)
        assumed = max(assumed or 0, most)
    shapes = {name: _shape(value) for name, value in values.items() if value.type.tensor_type.HasField("shape")}
    return shapes | {tensor.name: tuple(tensor.dims) for tensor in light.graph.initializer}, assumed


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """By name, but for those that are too long to matter here."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute if _entries(a) <= _LONG}


def _light(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph for shapes alone: without large constants, with inputs of one row, and of operators that ONNX knows."""
    graph, light = model.graph, onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    light.graph.name = "shapes"
    for tensor in graph.initializer:
        if prod(tensor.dims) <= _SMALL:
            light.graph.initializer.append(tensor)
        else:
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    constants = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        if value.name not in constants:
            light.graph.input.append(_of_one_row(value))
    for node in graph.node:
        light.graph.node.extend(_known(node, light))
    texts = [value for value in graph.value_info if value.type.tensor_type.elem_type == TensorProto.STRING]
    light.graph.value_info.extend(texts)  # of operators that ONNX does not know
    light.graph.output.extend(
        helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, None) for value in graph.output
    )
    return light


def _of_one_row(value: ValueInfoProto) -> ValueInfoProto:
    """The input, with a first axis of one where it is free."""
    one = ValueInfoProto()
    one.CopyFrom(value)
    axes = one.type.tensor_type.shape.dim
    if axes and not axes[0].dim_value:
        axes[0].dim_value = 1
    return one


def _short(node: NodeProto) -> NodeProto:
    """The node without the entries of long attributes."""
    if all(_entries(attribute) <= _LONG for attribute in node.attribute):
        return node
    short = helper.make_node(node.op_type, list(node.input), list(node.output), node.name, domain=node.domain)
    for a in node.attribute:
        if _entries(a) <= _LONG:
            short.attribute.append(a)
        else:
            first = AttributeProto(
                name=a.name, type=a.type, floats=a.floats[:1], ints=a.ints[:1], strings=a.strings[:1]
            )
            short.attribute.append(first)
    return short


def _entries(attribute: AttributeProto) -> int:
    return len(attribute.floats) + len(attribute.ints) + len(attribute.strings)


def _inferred(light: onnx.ModelProto) -> dict[str, ValueInfoProto]:
    graph = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    return {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}


def _shape(value: ValueInfoProto) -> Shape:
    return tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)


def _work_out(light: onnx.ModelProto, values: _Values) -> bool:
    """Make constants of integers that follow from shapes, which inference follows only a part of the way; any new?"""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in light.graph.initializer}
    opsets = {opset.domain: opset.version for opset in light.opset_import}
    known, left = len(constants), []
    for node in light.graph.node:
        found = _worked_out(node, values, constants, opsets)
        if found is None:
            left.append(node)
        else:
            constants[node.output[0]] = found
            light.graph.initializer.append(numpy_helper.from_array(found, node.output[0]))
    del light.graph.node[:]
    light.graph.node.extend(left)
    return len(constants) > known


def _worked_out(
    node: NodeProto, values: _Values, constants: Mapping[str, Array], opsets: Mapping[str, int]
) -> Array | None:
    if node.op_type == "Shape" and node.input[0] in values:
        bounds, whole = attributes_of(node), _shape(values[node.input[0]])
        shape = whole[bounds.get("start", 0) : bounds.get("end")]
        return np.asarray(shape, np.int64) if whole and all(shape) else None
    given = {name: constants[name] for name in node.input if name in constants}
    whole_numbers = all(array.dtype.kind in "bi" for array in given.values())
    if node.op_type not in _ARITHMETIC or len(given) < len(set(node.input)) or not whole_numbers:
        return None
    try:
        told: Any = ReferenceEvaluator(node, opsets=dict(opsets)).run(None, given)
    except Exception:  # noqa: BLE001 - what cannot be worked out stays unknown
        return None
    found = np.asarray(told[0])
    return found if found.dtype.kind in "bi" and found.size <= _SMALL else None


def _first_cut(light: onnx.ModelProto, values: _Values) -> tuple[ValueInfoProto, int] | None:
    """What the first Slice gives whose length is not known, but its most; with that one, and the most itself."""
    constants = {tensor.name: tensor for tensor in light.graph.initializer}
    for node in light.graph.node:
        value = values.get(node.output[0]) if node.op_type == "Slice" else None
        if value is None or not all(name in constants for name in node.input[1:]):
            continue
        starts, ends, *more = (numpy_helper.to_array(constants[name]).tolist() for name in node.input[1:])
        axes = more[0] if more else list(range(len(starts)))
        steps = more[1] if len(more) > 1 else [1] * len(starts)
        longest, most = ValueInfoProto(), 0
        longest.CopyFrom(value)
        sizes = longest.type.tensor_type.shape.dim
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            if axis < len(sizes) and not sizes[axis].dim_value and 0 <= start < end < _ENDLESS and step > 0:
                sizes[axis].dim_value = most = ceil((end - start) / step)
        if most:
            return longest, most
    return None


def _known(node: NodeProto, light: onnx.ModelProto) -> list[NodeProto]:
    """The node, or nodes of ONNX whose last one has the shape that the first output of ONNX Runtime's own has."""
    stand_in = _STAND_INS.get(node.op_type) if node.domain == ORT else None
    return [_short(node)] if stand_in is None else stand_in(node, light)


def _as_first(node: NodeProto, _: onnx.ModelProto) -> list[NodeProto]:
    return [helper.make_node("Identity", node.input[:1], node.output[:1])]


def _tokens(node: NodeProto, light: onnx.ModelProto) -> list[NodeProto]:
    """Each text becomes a row of tokens, nobody knows how many."""
    name = node.output[0]
    light.graph.initializer.append(numpy_helper.from_array(np.asarray([-1], np.int64), f"{name}/axis"))
    light.graph.input.append(helper.make_tensor_value_info(f"{name}/places", TensorProto.INT64, [None]))
    return [
        helper.make_node("Unsqueeze", [node.input[0], f"{name}/axis"], [f"{name}/one"]),
        helper.make_node("Gather", [f"{name}/one", f"{name}/places"], [name], axis=-1),
    ]


def _words(node: NodeProto, _: onnx.ModelProto) -> list[NodeProto]:
    """Of EmbedLayerNormalization: a row of the table of words for each."""
    return [helper.make_node("Gather", [node.input[2], node.input[0]], node.output[:1])]


def _fused(node: NodeProto, _: onnx.ModelProto) -> list[NodeProto]:
    """Of FusedMatMul, which may turn what it multiplies."""
    told = attributes_of(node)
    if not told.get("transA") and not told.get("transB"):
        return [helper.make_node("MatMul", node.input[:2], node.output[:1])]
    left, right = "ji" if told.get("transA") else "ij", "kj" if told.get("transB") else "jk"
    equation = f"...{left},...{right}->...ik"
    return [helper.make_node("Einsum", node.input[:2], node.output[:1], equation=equation)]


def _integers(node: NodeProto, _: onnx.ModelProto) -> list[NodeProto]:
    """Of MatMulIntegerToFloat."""
    return _floats(node, node.input[1])


def _blocks(node: NodeProto, light: onnx.ModelProto) -> list[NodeProto]:
    """Of MatMulNBits, whose weights are packed."""
    told = attributes_of(node)
    return _floats(node, _made_up(light, node.output[0], (told["K"], told["N"])))


def _attention(node: NodeProto, light: onnx.ModelProto) -> list[NodeProto]:
    """What is said of each token is as wide as the values; the weights come before the nodes."""
    known = {tensor.name: tuple(tensor.dims) for tensor in light.graph.initializer}
    known |= {value.name: _shape(value) for value in light.graph.input}
    if (dims := known.get(node.input[1])) is None:
        return [node]
    return _floats(node, _made_up(light, node.output[0], (dims[0], attention_widths(node, dims)[2])))


def attention_widths(node: NodeProto, weights: Shape) -> tuple[int, int, int]:
    """Of an Attention's queries, keys and values, all heads together."""
    told = attributes_of(node).get("qkv_hidden_sizes")
    queries, keys, values = told or [weights[1] // 3] * 3
    return queries, keys, values


def _floats(node: NodeProto, weights: str) -> list[NodeProto]:
    product = f"{node.output[0]}/product"
    return [
        helper.make_node("MatMul", [node.input[0], weights], [product]),
        helper.make_node("Cast", [product], node.output[:1], to=TensorProto.FLOAT),
    ]


def _made_up(light: onnx.ModelProto, output: str, dims: Shape) -> str:
    light.graph.input.append(helper.make_tensor_value_info(f"{output}/weights", TensorProto.FLOAT, dims))
    return f"{output}/weights"


_STAND_INS: dict[str, Callable[[NodeProto, onnx.ModelProto], list[NodeProto]]] = {
    "Tokenizer": _tokens, "EmbedLayerNormalization": _words, "FusedMatMul": _fused, "MatMulIntegerToFloat": _integers,
    "MatMulNBits": _blocks, "Attention": _attention, "QAttention": _attention, "Gelu": _as_first, "FastGelu": _as_first,
    "QuickGelu": _as_first, "BiasGelu": _as_first, "SkipLayerNormalization": _as_first,
}  # fmt: skip
