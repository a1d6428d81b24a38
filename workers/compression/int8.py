"""8-bit integers by ONNX Runtime's quantizer."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from onnxruntime.quantization.shape_inference import quant_pre_process

from workers.learning import Inputs, rows_of, take

CALIBRATION_ROWS = 512
_BATCH = 64
_STATIC = [
    "Conv",
    "Relu",
    "MaxPool",
]  # the classifier at the end stays float: it is small, and its answers are probabilities


def quantize_weights(model: onnx.ModelProto) -> tuple[bytes, dict[str, Any]]:
    """Dynamic int8: weights per channel, activations by their range at run time. For matrix products."""
    with TemporaryDirectory() as folder:
        source, target = Path(folder) / "source.onnx", Path(folder) / "int8.onnx"
        graph = onnx.ModelProto()
        graph.CopyFrom(model)
        add_pre_process_metadata(graph)  # there is nothing to fold in these graphs; without it the quantizer warns
        onnx.save(graph, source)
        quantize_dynamic(
            source, target, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8
        )
        recipe = {"method": "dynamic", "precision": "int8", "per_channel": True, "operators": ["MatMul", "Gemm"]}
        return target.read_bytes(), recipe


def quantize_convolutions(
    model: onnx.ModelProto, calibration: Inputs, batch: int = _BATCH
) -> tuple[bytes, dict[str, Any]]:
    """Static int8 in QDQ form: weights per channel int8, activations uint8 with ranges from real rows.

    Args:
        model: with convolutions.
        calibration: training rows; the first CALIBRATION_ROWS are used.
        batch: most rows that the model takes at once.
    """
    some = take(calibration, slice(0, CALIBRATION_ROWS))
    with TemporaryDirectory() as folder:
        source, prepared, target = (Path(folder) / f"{name}.onnx" for name in ("source", "prepared", "int8"))
        onnx.save(model, source)
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared, target, _Reader(some, min(batch, _BATCH)), quant_format=QuantFormat.QDQ, per_channel=True,
            op_types_to_quantize=_STATIC,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod.MinMax,
        )  # fmt: skip
        recipe = {
            "method": "static", "precision": "int8", "format": "qdq", "per_channel": True, "activations": "uint8",
            "operators": _STATIC,
            "calibration": {"rows": rows_of(some), "method": "min-max", "part": "train"},
        }  # fmt: skip
        return _read_bytes(onnx.load(target)).SerializeToString(), recipe


def _read_bytes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let the first layer read the picture's bytes as they are.

    `Cast → Mul(scale) → QuantizeLinear → DequantizeLinear` is one DequantizeLinear of the bytes with that scale, and
    exact. A graph that begins in another way stays as it is.
    """
    graph, scales = model.graph, {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    chain: list[onnx.NodeProto] = []
    value = graph.input[0].name
    for op in ("Cast", "Mul", "QuantizeLinear", "DequantizeLinear"):
        users = [node for node in graph.node if value in node.input]
        if len(users) != 1 or users[0].op_type != op:
            return model
        chain.append(users[0])
        value = users[0].output[0]
    scale = [scales[name] for name in chain[1].input if name in scales]
    if graph.input[0].type.tensor_type.elem_type != onnx.TensorProto.UINT8 or len(scale) != 1 or scale[0].size != 1:
        return model
    graph.initializer.append(numpy_helper.from_array(scale[0].reshape(()).astype(np.float32), "picture_scale"))
    graph.initializer.append(numpy_helper.from_array(np.asarray(0, np.uint8), "picture_zero"))
    chain[-1].input[:] = [graph.input[0].name, "picture_scale", "picture_zero"]
    for node in chain[:-1]:
        graph.node.remove(node)
    return model


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped base
    """Feeds rows to the calibrator in batches."""

    def __init__(self, inputs: Inputs, batch: int) -> None:
        self._batches: Iterator[Any] = (
            take(inputs, slice(start, start + batch)) for start in range(0, rows_of(inputs), batch)
        )

    def get_next(self) -> Any:  # noqa: ANN401 - the base class's protocol
        return next(self._batches, None)
