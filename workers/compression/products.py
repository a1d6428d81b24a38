"""Products with weights in integers, floating point in between: what ONNX Runtime's fastest kernel for them takes."""

from math import prod
from typing import Any

import onnx_ir
from onnxscript.rewriter import RewriteRule, RewriteRuleSet, rewrite

from workers.compression.graphs import PRODUCTS, Model, weights_of

BIG_TABLE = 1 << 16  # numbers of a table that is worth quantizing


def weighted(model: Model, operators: frozenset[str]) -> list[str]:
    """Names of the nodes of these types that multiply with weights, or look up in a large table of them."""
    sizes = {name: prod(tensor.dims) for name, tensor in weights_of(model).items()}
    return [
        node.name
        for node in model.graph.node
        if (node.op_type in operators & PRODUCTS and node.input[1] in sizes)
        or (node.op_type in operators & {"Gather"} and sizes.get(node.input[0], 0) >= BIG_TABLE)
    ]


def with_their_bias(model: Model) -> Model:
    """`Add(MatMul(DequantizeLinear, DequantizeLinear), bias)` becomes one MatMulIntegerToFloat; all else stays.

    ONNX Runtime makes that node itself when it loads a model, but leaves the Add beside it.
    """
    rule = RewriteRule(_sum, _one_node, _is_a_bias, remove_nodes=False)
    made: Model = rewrite(model, RewriteRuleSet([rule], commute=True))
    return made


def _sum(op: Any, x: Any, x_scale: Any, x_zero: Any, w: Any, w_scale: Any, w_zero: Any, bias: Any) -> Any:  # noqa: ANN401, PLR0913, PLR0917 - the rewriter finds values by these names
    values = op.DequantizeLinear(x, x_scale, x_zero, _allow_other_attributes=True)
    weights = op.DequantizeLinear(w, w_scale, w_zero, _allow_other_attributes=True)
    return op.Add(op.MatMul(values, weights), bias)


def _one_node(op: Any, **found: Any) -> Any:  # noqa: ANN401 - the rewriter's objects
    inputs = [found[name] for name in ("x", "w", "x_scale", "w_scale", "x_zero", "w_zero", "bias")]
    return op.MatMulIntegerToFloat(*inputs, _domain="com.microsoft", _version=1)


def _is_a_bias(_: object, **found: onnx_ir.Value) -> bool:
    w, bias = found["w"], found["bias"]
    return w.is_initializer() and bias.is_initializer() and bias.shape is not None and bias.shape.rank() == 1
