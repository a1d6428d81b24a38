"""8-bit integers by ONNX Runtime's quantizer."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from workers.export.runtime import Inputs, rows_of, take

CALIBRATION_ROWS = 512
_BATCH = 64


def quantize_weights(model: onnx.ModelProto) -> tuple[bytes, dict[str, Any]]:
    """Dynamic int8: weights per channel, activations by their range at run time. For matrix products."""
    with TemporaryDirectory() as folder:
        target = Path(folder) / "int8.onnx"
        quantize_dynamic(
            model, target, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8
        )
        recipe = {"method": "dynamic", "precision": "int8", "per_channel": True, "operators": ["MatMul", "Gemm"]}
        return target.read_bytes(), recipe


def quantize_convolutions(model: onnx.ModelProto, calibration: Inputs) -> tuple[bytes, dict[str, Any]]:
    """Static int8 in QDQ form: weights per channel int8, activations uint8 with ranges from real rows.

    Args:
        model: with convolutions.
        calibration: training rows; the first CALIBRATION_ROWS are used.
    """
    some = take(calibration, slice(0, CALIBRATION_ROWS))
    with TemporaryDirectory() as folder:
        source, prepared, target = (Path(folder) / f"{name}.onnx" for name in ("source", "prepared", "int8"))
        onnx.save(model, source)
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared, target, _Reader(some), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod.MinMax,
        )  # fmt: skip
        recipe = {
            "method": "static", "precision": "int8", "format": "qdq", "per_channel": True, "activations": "uint8",
            "calibration": {"rows": rows_of(some), "method": "min-max", "part": "train"},
        }  # fmt: skip
        return target.read_bytes(), recipe


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped base
    """Feeds rows to the calibrator in batches."""

    def __init__(self, inputs: Inputs) -> None:
        self._batches: Iterator[Any] = (
            take(inputs, slice(start, start + _BATCH)) for start in range(0, rows_of(inputs), _BATCH)
        )

    def get_next(self) -> Any:  # noqa: ANN401 - the base class's protocol
        return next(self._batches, None)
