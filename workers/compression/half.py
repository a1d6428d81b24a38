"""Half precision where GPUs gain by it: products and what lies between them run in FP16, all else as before.

The converter that comes with ONNX Runtime sends inputs, and values between nodes that stay as they are, through FP16:
a column with numbers above 65,504 would be infinite before it is scaled.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from onnx.inliner import inline_local_functions

from workers.compression.graphs import Model, add_weight, copied, weights_of
from workers.compression.products import BIG_TABLE
from workers.export.runtime import open_session
from workers.learning import Array

LARGEST = 65504.0
_SMALLEST = 2.0**-24  # above 0
_CLIP = 11  # the version of ONNX from which its bounds are inputs
_DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})
_PRODUCTS = frozenset({
    "Attention", "Conv", "ConvTranspose", "EmbedLayerNormalization", "Gemm", "GRU", "LSTM", "MatMul",
    "MultiHeadAttention",
})  # fmt: skip
# Operators that take FP16, have a kernel of CUDA for it, and whose floats all have one type.
_BETWEEN = _PRODUCTS | {
    "Abs", "Add", "AveragePool", "BatchNormalization", "BiasGelu", "Clip", "Concat", "DepthToSpace", "Div", "Dropout",
    "Elu", "Erf", "Exp", "Expand", "FastGelu", "Flatten", "Gather", "Gelu", "GlobalAveragePool", "GlobalMaxPool",
    "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "LayerNormalization", "LeakyRelu", "LogSoftmax",
    "MaxPool", "Mul", "Neg", "Pad", "Pow", "PRelu", "QuickGelu", "Reciprocal", "ReduceMax", "ReduceMean", "ReduceSum",
    "Relu", "Reshape", "Shape", "Sigmoid", "SkipLayerNormalization", "Slice", "Softmax", "SpaceToDepth", "Split",
    "Sqrt", "Squeeze", "Sub", "Tanh", "Tile", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
_ONE_FLOAT = frozenset({"BatchNormalization", "LayerNormalization", "SkipLayerNormalization"})  # others are statistics
_GRAPHS = frozenset({AttributeProto.GRAPH, AttributeProto.GRAPHS})
_BOUNDED = frozenset({"Clip", "Where"})  # a number that is as large as can be means as much in FP16


def in_half(model: Model) -> Model:
    """Inputs and outputs have the types that they had. Constants that FP16 cannot hold keep their node as it is.

    Args:
        model: any.

    Raises:
        ValueError: there is no product of floats in it that can be in half precision.
    """
    model = _plain(model)
    floats = _floats(model)
    chosen = _chosen(model, floats)
    if not chosen:
        raise ValueError("there is no product of floats in it whose constants half precision can hold")
    return _Halving(model, floats, chosen).made()


def _plain(model: Model) -> Model:
    """A model of its own, without functions, whose constants are initializers."""
    plain: Model = inline_local_functions(model) if model.functions else copied(model)
    plain.ir_version = max(plain.ir_version, 4)  # from where initializers need not be inputs
    kept = []
    for node in plain.graph.node:
        if node.op_type == "Constant" and node.attribute[0].type == AttributeProto.TENSOR:
            tensor = plain.graph.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
        else:
            kept.append(node)
    _put(plain.graph.node, kept)
    return plain


def _floats(model: Model) -> set[str]:
    """Names of FP32 values, as ONNX Runtime infers types: it knows the operators of its own domain too."""
    shown, given = copied(model), {value.name for value in model.graph.output}
    made = [name for node in model.graph.node for name in node.output if name and name not in given]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    session = open_session(shown.SerializeToString(), 1)
    found = {value.name for value in [*session.get_inputs(), *session.get_outputs()] if value.type == "tensor(float)"}
    return found | {name for name, tensor in weights_of(model).items() if tensor.data_type == TensorProto.FLOAT}


def _chosen(model: Model, floats: set[str]) -> set[int]:
    """Which nodes: products, and those that a way from one product to another leads through."""
    nodes, weights = model.graph.node, weights_of(model)
    beyond = {name for name, tensor in weights.items() if name in floats and _is_beyond(tensor)}
    tables = {name for name, tensor in weights.items() if name in floats and prod(tensor.dims) >= BIG_TABLE}
    able = {at for at, node in enumerate(nodes) if _is_able(node, floats, beyond)}
    products = {
        at for at in able if nodes[at].op_type in _PRODUCTS
        or (nodes[at].op_type == "Gather" and nodes[at].input[0] in tables)
    }  # fmt: skip
    after: set[str] = set()
    for at, node in enumerate(nodes):
        if at in products or not after.isdisjoint(_read(node)):
            after.update(filter(None, node.output))
    before: set[str] = set()
    for at in reversed(range(len(nodes))):
        if at in products or not before.isdisjoint(nodes[at].output):
            before.update(_read(nodes[at]))
    return products | {
        at for at in able if not after.isdisjoint(nodes[at].input) and not before.isdisjoint(nodes[at].output)
    }  # fmt: skip


def _is_able(node: onnx.NodeProto, floats: set[str], beyond: set[str]) -> bool:
    """Whether it can be in FP16."""
    if node.op_type not in _BETWEEN or node.domain not in _DOMAINS:
        return False
    if node.op_type in _ONE_FLOAT and sum(map(bool, node.output[:3])) > 1:
        return False
    read = node.input[:1] if node.op_type == "Shape" else node.output[:1]
    return not floats.isdisjoint(read) and (node.op_type in _BOUNDED or beyond.isdisjoint(node.input))


def _is_beyond(tensor: TensorProto) -> bool:
    """It has numbers that would become infinite."""
    numbers = np.abs(numpy_helper.to_array(tensor))
    return bool((numbers[np.isfinite(numbers)] > LARGEST).any())


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """Names that it reads, in its subgraphs too."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs] if attribute.type in _GRAPHS else ():
            yield from (value.name for value in graph.output)
            for inner in graph.node:
                yield from _read(inner)


@dataclass(slots=True)
class _Halving:
    """Gives the chosen nodes FP16 in place of FP32, with casts between them and the others."""

    model: Model
    floats: set[str]
    chosen: set[int]
    _nodes: list[onnx.NodeProto] = field(default_factory=list)
    _half: dict[tuple[str, bool], str] = field(default_factory=dict)  # by what it is in FP32, and whether it is held
    _taken: set[str] = field(default_factory=set)

    def made(self) -> Model:
        """The model, which is changed."""
        graph, weights = self.model.graph, weights_of(self.model)
        self._taken = {*weights, *(name for node in graph.node for name in (*node.input, *node.output))}
        others = {name for at, node in enumerate(graph.node) if at not in self.chosen for name in _read(node)}
        others |= {value.name for value in graph.output}
        for at, node in enumerate(graph.node):
            if at not in self.chosen:
                self._nodes.append(node)
                continue
            for i, name in enumerate(node.input):
                if name in self.floats:
                    held = not (node.op_type in _PRODUCTS and i == 0)
                    node.input[i] = self._in_half(name, weights.get(name), held=held)
            self._nodes.append(node)
            for i, name in enumerate(node.output):
                if name in self.floats:
                    node.output[i] = self._half[name, True] = self._half[name, False] = self._new(name)
                    if name in others:
                        self._cast(node.output[i], name, TensorProto.FLOAT)
        _put(graph.node, self._nodes)
        self._leave_out_unread()
        return self.model

    def _in_half(self, name: str, weight: TensorProto | None, *, held: bool) -> str:
        """The name of this value in FP16; with `held` what is beyond its range is the largest that it has.

        So a mask of -1e9 beside a softmax is no infinity. Of what a product multiplies it would hide an overflow.
        """
        key = name, held and weight is None
        if key not in self._half:
            if weight is not None:
                self._half[key] = add_weight(self.model, self._new(name), _rounded(numpy_helper.to_array(weight)))
            else:
                source = self._clip(name) if key[1] else name
                self._half[key] = self._cast(source, self._new(name), TensorProto.FLOAT16)
        return self._half[key]

    def _clip(self, name: str) -> str:
        if max(one.version for one in self.model.opset_import if one.domain in {"", "ai.onnx"}) < _CLIP:
            return name
        bounds = [self._bound(value) for value in (-LARGEST, LARGEST)]
        self._nodes.append(helper.make_node("Clip", [name, *bounds], [held := self._new(name, "held")], name=held))
        return held

    def _bound(self, value: float) -> str:
        key = f"{value:g}", False
        if key not in self._half:
            self._half[key] = add_weight(self.model, self._new(key[0], "bound"), np.asarray(value, np.float32))
        return self._half[key]

    def _cast(self, name: str, to: str, kind: int) -> str:
        self._nodes.append(helper.make_node("Cast", [name], [to], to=kind, name=f"{to}/cast"))
        return to

    def _new(self, name: str, what: str = "fp16") -> str:
        """A name that nothing has."""
        new = f"{name}/{what}"
        while new in self._taken:
            new += "'"
        self._taken.add(new)
        return new

    def _leave_out_unread(self) -> None:
        """Weights that nobody reads in FP32 any more, and what was known of values that are gone."""
        graph = self.model.graph
        read = {name for node in graph.node for name in _read(node)} | {value.name for value in graph.output}
        unread = {tensor.name for tensor in graph.initializer} - read
        _put(graph.initializer, (tensor for tensor in graph.initializer if tensor.name not in unread))
        _put(graph.input, (value for value in graph.input if value.name not in unread))
        made = {name for node in graph.node for name in node.output}
        _put(graph.value_info, (value for value in graph.value_info if value.name in made))


def _rounded(value: Array) -> Array:
    """In FP16: what is too large is the largest there is, and of a single number what is too small the smallest.

    The latter is what keeps a division from one by zero.
    """
    held = np.where(np.isfinite(value), value.clip(-LARGEST, LARGEST), value)
    if value.size == 1:
        held = np.where((held != 0) & (np.abs(held) < _SMALLEST), np.copysign(_SMALLEST, held), held)
    return held.astype(np.float16)


def _put(field: Any, kept: Iterable[Any]) -> None:  # noqa: ANN401 - of protobuf, which has no types
    """In place of what a repeated field has."""
    values = list(kept)
    del field[:]
    field.extend(values)
