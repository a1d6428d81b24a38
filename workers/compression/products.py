"""Products with weights in integers, floating point in between: what ONNX Runtime's fastest kernel for them takes."""

from math import prod
from typing import TYPE_CHECKING, Any

import onnx

from workers.compression.graphs import PRODUCTS, Model, weights_of

if TYPE_CHECKING:
    import onnx_ir

BIG_TABLE = 1 << 16  # numbers of a table that is worth quantizing
_MATRIX = 2  # axes
_SAME_RANK = frozenset({"Transpose", "Cast", "Identity"})
_LAST = (1, -1)
_INTEGERS = frozenset[int]({onnx.TensorProto.INT8, onnx.TensorProto.UINT8})


def weighted(model: Model, operators: frozenset[str]) -> list[str]:
    """Names of the nodes of these types that multiply with a matrix of weights, or look up in a large table of them."""
    axes = _axes_of_constants(model)
    tables = {name for name, tensor in weights_of(model).items() if prod(tensor.dims) >= BIG_TABLE}
    return [
        node.name
        for node in model.graph.node
        if (node.op_type in operators & PRODUCTS and axes.get(node.input[1]) == _MATRIX)
        or (node.op_type in operators & {"Gather"} and node.input[0] in tables)
    ]


def _axes_of_constants(model: Model) -> dict[str, int]:
    """How many axes what is the same for all rows has: initializers, constants, and what is turned or cast of them."""
    axes = {name: len(tensor.dims) for name, tensor in weights_of(model).items()}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            axes[node.output[0]] = len(node.attribute[0].t.dims)
        elif node.op_type in _SAME_RANK and node.input[0] in axes:
            axes[node.output[0]] = axes[node.input[0]]
    return axes


def with_their_bias(model: Model) -> Model:
    """`Add(MatMul(DequantizeLinear, DequantizeLinear), bias)` becomes one MatMulIntegerToFloat; all else stays.

    ONNX Runtime makes that node itself when it loads a model, but leaves the Add beside it.
    """
    from onnxscript.rewriter import (  # noqa: PLC0415 - slow to load, and most jobs quantize no products
        RewriteRule,
        RewriteRuleSet,
        rewrite,
    )

    rule = RewriteRule(_sum, _one_node, _fits, remove_nodes=False)
    made: Model = rewrite(model, RewriteRuleSet([rule], commute=True))
    return made


def _sum(op: Any, x: Any, x_scale: Any, x_zero: Any, w: Any, w_scale: Any, w_zero: Any, bias: Any) -> Any:  # noqa: ANN401, PLR0913, PLR0917 - the rewriter finds values by these names
    values = op.DequantizeLinear(x, x_scale, x_zero, _allow_other_attributes=True)
    weights = op.DequantizeLinear(w, w_scale, w_zero, _allow_other_attributes=True, _outputs=["weights"])
    return op.Add(op.MatMul(values, weights, _outputs=["product"]), bias)


def _one_node(op: Any, **found: Any) -> Any:  # noqa: ANN401 - the rewriter's objects
    inputs = [found[name] for name in ("x", "w", "x_scale", "w_scale", "x_zero", "w_zero", "bias")]
    return op.MatMulIntegerToFloat(*inputs, _domain="com.microsoft", _version=1)


def _fits(_: object, **found: "onnx_ir.Value") -> bool:
    """True for 8-bit weights [K, N] with one scale, or one a column, a bias [N], and nobody else who reads the product.

    An imported graph may hold other forms, which the kernel does not take.
    """
    product, read = found["product"], found["weights"].producer()
    if read is None or len(product.uses()) != 1 or product.is_graph_output():
        return False
    x_scale, w, w_scale, w_zero, bias = (
        found[name].const_value for name in ("x_scale", "w", "w_scale", "w_zero", "bias")
    )
    if x_scale is None or w is None or w_scale is None or w_zero is None or bias is None:
        return False
    if w.dtype.value not in _INTEGERS or len(w.shape) != _MATRIX:
        return False
    if x_scale.size != 1 or "block_size" in read.attributes:
        return False
    axis = read.attributes["axis"].as_int() if "axis" in read.attributes else _LAST[0]
    columns = w.shape[1]
    by_column = w_scale.size == columns and axis in _LAST
    return list(bias.shape) == [columns] and (w_scale.size == 1 or by_column) and w_zero.size == w_scale.size
