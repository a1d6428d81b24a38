"""Smaller weights with the arithmetic left in floating point: 4 or 8 bits in blocks, bytes, or half precision."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization.onnx_model import ONNXModel

from workers.compression.graphs import Model, add_weight, copied
from workers.learning import Array

BLOCK = 32
_INT8_ARITHMETIC = 4  # ONNX Runtime's accuracy level: activations as int8 within a block
_LARGEST_HALF = 65504.0
_SMALLEST = 256  # numbers of a tensor that is worth a node
_LARGEST_BYTE = 127
_SLICE = 64  # numbers that share a scale, at least: it takes four bytes
_READ = {"Conv": (1,), "Gemm": (1,), "MatMul": (1,), "Gather": (0,), "LSTM": (1, 2), "GRU": (1, 2)}  # which inputs
_Bytes = tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]


def weight_only(model: Model, bits: int) -> Model:
    """Constant matrices in blocks of BLOCK numbers of 4 or 8 bits with a scale each (MatMulNBits)."""
    graph = ONNXModel(copied(model))
    graph.replace_gemm_with_matmul()
    quantizer = _nbits_quantizer()(
        graph.model, bits=bits, block_size=BLOCK, is_symmetric=True, accuracy_level=_INT8_ARITHMETIC
    )
    quantizer.process()
    made: Model = quantizer.model.model
    return made


def half_weights(model: Model) -> Model:
    """Weights stored as FP16; ONNX Runtime makes them FP32 once, when it loads the model."""
    model = copied(model)
    stored = []
    for tensor in list(model.graph.initializer):
        value = numpy_helper.to_array(tensor)
        if value.dtype != np.float32 or value.size < _SMALLEST or not np.abs(value).max() < _LARGEST_HALF:
            continue
        small = add_weight(model, f"{tensor.name}/half", value.astype(np.float16))
        stored.append(_cast(small, tensor.name))
        model.graph.initializer.remove(tensor)
    return _beginning_with(stored, model)


def byte_weights(model: Model) -> Model:
    """Float matrices, kernels and tables stored as INT8 with a scale a slice, and made FP32 as those of `half_weights`.

    They are bytes times scales, not a DequantizeLinear: that one ONNX Runtime would work out in each run.
    """
    model = copied(model)
    stored = []
    for tensor in matrices_of(model):
        rounded, spread = _in_bytes(numpy_helper.to_array(tensor))
        small = add_weight(model, f"{tensor.name}/bytes", rounded)
        scale, back = add_weight(model, f"{tensor.name}/scale", spread), f"{small}/float"
        stored += [_cast(small, back), helper.make_node("Mul", [back, scale], [tensor.name], name=f"{small}/mul")]
        model.graph.initializer.remove(tensor)
    return _beginning_with(stored, model)


def matrices_of(model: Model) -> list[onnx.TensorProto]:
    """Constant matrices, kernels and tables of finite FP32 numbers, but for very small ones."""
    read = {node.input[at] for node in model.graph.node for at in _READ.get(node.op_type, ())}
    return [tensor for tensor in model.graph.initializer if tensor.name in read and _is_large(tensor)]


def _is_large(tensor: onnx.TensorProto) -> bool:
    if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) <= 1 or math.prod(tensor.dims) < _SMALLEST:
        return False
    return bool(np.isfinite(numpy_helper.to_array(tensor)).all())


def _in_bytes(value: Array) -> _Bytes:
    """Bytes of its shape and scales to multiply them by, along the axis that loses least at _SLICE numbers a scale."""
    axes = [axis for axis in range(value.ndim) if value.size >= _SLICE * value.shape[axis]]
    found = [_rounded(value, axis) for axis in axes or [int(np.argmin(value.shape))]]
    return min(found, key=lambda one: float(np.square(one[0] * one[1] - value).sum()))


def _rounded(value: Array, axis: int) -> _Bytes:
    others = tuple(other for other in range(value.ndim) if other != axis)
    scale = (np.abs(value).max(axis=others, keepdims=True) / _LARGEST_BYTE).astype(np.float32)
    scale[scale == 0] = 1.0
    return np.rint(value / scale).astype(np.int8), scale


def _cast(name: str, output: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [name], [output], to=onnx.TensorProto.FLOAT, name=f"{name}/cast")


def _beginning_with(stored: Sequence[onnx.NodeProto], model: Model) -> Model:
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*stored, *nodes])
    return model


def _nbits_quantizer() -> Any:  # noqa: ANN401 - a class without types
    """Its module would send all log records of the process to standard error, unless they go somewhere already."""
    somewhere = logging.NullHandler()
    logging.getLogger().addHandler(somewhere)
    try:
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer  # noqa: PLC0415 - see above
    finally:
        logging.getLogger().removeHandler(somewhere)
    return MatMulNBitsQuantizer
