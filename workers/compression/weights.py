"""Smaller weights with the arithmetic left in floating point: 4 or 8 bits in blocks, or half precision."""

import logging
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization.onnx_model import ONNXModel

from workers.compression.graphs import Model, add_weight, copied

BLOCK = 32
_INT8_ARITHMETIC = 4  # ONNX Runtime's accuracy level: activations as int8 within a block
_LARGEST_HALF = 65504.0
_SMALLEST = 256  # numbers of a tensor that is worth a node


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
    casts = []
    for tensor in list(model.graph.initializer):
        value = numpy_helper.to_array(tensor)
        if value.dtype != np.float32 or value.size < _SMALLEST or not np.abs(value).max() < _LARGEST_HALF:
            continue
        small = add_weight(model, f"{tensor.name}/half", value.astype(np.float16))
        casts.append(helper.make_node("Cast", [small], [tensor.name], to=onnx.TensorProto.FLOAT, name=f"{small}/cast"))
        model.graph.initializer.remove(tensor)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *nodes])
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
