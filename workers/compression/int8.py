"""8-bit integers by ONNX Runtime's quantizer."""

from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper
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

from workers.compression.graphs import PRODUCTS, Model, copied, weights_of, with_names
from workers.compression.products import weighted, with_their_bias
from workers.learning import Inputs, rows_of, take

CALIBRATION_ROWS = 512
_BATCH = 64
_HISTOGRAM_ROWS = 128  # of these: entropy and percentile keep every value that they see
# The classifier at the end stays float: it is small, and its answers are probabilities.
CONVOLUTIONS = ("Conv", "Relu", "MaxPool")
EVERYTHING = ("Conv", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Add", "Concat", "MatMul", "Gemm")
WEIGHTED = frozenset({"Conv", "MatMul", "Gemm"})
_UNKNOWN = {"DefaultTensorType": onnx.TensorProto.FLOAT}  # what shape inference does not see behind a fused node
Calibration = Literal["min-max", "entropy", "percentile"]
_METHODS = {
    "min-max": CalibrationMethod.MinMax, "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}  # fmt: skip
_TYPES = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}


def calibrated_with(calibration: Calibration, rows: int) -> int:
    """How many of the rows are looked at."""
    return rows if calibration == "min-max" else min(rows, _HISTOGRAM_ROWS)


def quantize_weights(model: Model, operators: Sequence[str], keep_float: Sequence[str] = ()) -> Model:
    """Dynamic int8: weights per channel, activations by their range at run time."""
    with TemporaryDirectory() as folder:
        source, target = Path(folder) / "source.onnx", Path(folder) / "int8.onnx"
        graph = with_names(copied(model))
        add_pre_process_metadata(graph)  # there is nothing to fold in these graphs; without it the quantizer warns
        onnx.save(graph, source)
        quantize_dynamic(
            source, target, op_types_to_quantize=list(operators), per_channel=True, weight_type=QuantType.QInt8,
            nodes_to_exclude=list(keep_float), extra_options=dict(_UNKNOWN),
        )  # fmt: skip
        return onnx.load(target)


class Static:
    """Static int8 of one model, in QDQ form or by products of integers: weights per channel, ranges of real rows.

    Ranges are found once for each set of operators and way to calibrate.

    Args:
        model: to be quantized.
        rows: to calibrate with.
        batch: most rows that the model takes at once.
        folder: of its own, for files that are read again.
    """

    def __init__(self, model: Model, rows: Inputs, batch: int, folder: Path) -> None:
        self._rows, self._batch, self.folder = rows, min(batch, _BATCH), folder
        folder.mkdir(parents=True, exist_ok=True)
        source, self._prepared = folder / "source.onnx", folder / "prepared.onnx"
        onnx.save(model, source)
        quant_pre_process(source, self._prepared, skip_symbolic_shape=True)
        graph = _with_types(with_names(onnx.load(self._prepared)))
        onnx.save(graph, self._prepared)

    def quantize(
        self,
        operators: Sequence[str],
        activations: Literal["uint8", "int8"] = "uint8",
        calibration: Calibration = "min-max",
        keep_float: Sequence[str] = (),
        *,
        float_between: bool = False,
    ) -> Model:
        """The quantized model.

        Args:
            operators: types of the nodes that are quantized.
            activations: their type.
            calibration: how ranges follow from values.
            keep_float: names of nodes that are not.
            float_between: only what goes into a node with weights is quantized, not what comes out of products.

        Raises:
            ValueError: there is nothing to quantize.
        """
        options: dict[str, Any] = {"op_types_to_quantize": list(operators), "extra_options": dict(_UNKNOWN)}
        if float_between:
            wanted = self.layers(operators, float_between=True)
            if not wanted:
                raise ValueError("no node of these types has weights")
            if not (left := sorted(set(wanted) - set(keep_float))):  # the quantizer takes an empty list for all nodes
                return onnx.load(self._prepared)
            options["nodes_to_quantize"] = left
            options["extra_options"]["OpTypesToExcludeOutputQuantization"] = sorted(PRODUCTS)
        rows = take(self._rows, slice(0, calibrated_with(calibration, rows_of(self._rows))))
        target = self.folder / "int8.onnx"
        cache = self.folder / f"{calibration}-{activations}-{'-'.join(operators)}.json"
        with redirect_stdout(StringIO()):  # what the calibrators tell
            quantize_static(
                self._prepared, target, _Reader(rows, self._batch), quant_format=QuantFormat.QDQ, per_channel=True,
                nodes_to_exclude=list(keep_float), activation_type=_TYPES[activations], weight_type=QuantType.QInt8,
                calibrate_method=_METHODS[calibration], calibration_cache_path=cache, **options,
            )  # fmt: skip
        made = _read_bytes(onnx.load(target))
        return with_their_bias(made) if float_between else made

    def layers(self, operators: Sequence[str], *, float_between: bool) -> list[str]:
        """Names of the nodes that `quantize` takes the products of, and tables if they are among the operators."""
        graph = onnx.load(self._prepared)
        if float_between:
            return weighted(graph, frozenset(operators))
        return [node.name for node in graph.graph.node if node.op_type in WEIGHTED & set(operators)]


def _with_types(model: Model) -> Model:
    """What goes into a node with weights, and comes out, has their type: the quantizer skips what it has no type of."""
    graph, weights = model.graph, weights_of(model)
    known = {value.name for value in [*graph.value_info, *graph.input, *graph.output]} | set(weights)
    for node in graph.node:
        if node.op_type in WEIGHTED and (matrix := weights.get(node.input[1])) is not None:
            for name in (node.input[0], node.output[0]):
                if name not in known:
                    graph.value_info.append(helper.make_tensor_value_info(name, matrix.data_type, None))
                    known.add(name)
    return model


def _read_bytes(model: Model) -> Model:
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
