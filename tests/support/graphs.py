"""Version folders of models that weigh something, or may run for ever."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from app.core.signature import Signature, Tensor
from app.serving.host import ModelSource
from app.serving.types import Batching

FOR_EVER = 1 << 60
_OPSETS = [helper.make_opsetid("", 18)]


def _save(graph: onnx.GraphProto, folder: Path, signature: Signature, golden: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=_OPSETS, ir_version=9), folder / "model.onnx")
    (folder / "signature.json").write_text(json.dumps(signature.to_json()))
    (folder / "golden.json").write_text(json.dumps(golden))
    return folder


def heavy(folder: Path, mib: float, bias: float = 0.0) -> Path:
    """`y = (the values of x in another order) + bias` over [n, 512]: so many MiB of weights, no two alike."""
    width, nodes, weights, last = 512, [], [], "x"
    row = np.arange(width, dtype=np.float32) % 7
    moved = row
    for at in range(max(1, round(mib))):  # 1 MiB each; ONNX Runtime keeps weights that are the same once
        turn = np.roll(np.eye(width, dtype=np.float32), at + 1, axis=1)
        weights.append(numpy_helper.from_array(turn, f"w{at}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{at}"], [f"h{at}"]))
        last, moved = f"h{at}", moved @ turn
    weights.append(numpy_helper.from_array(np.full(width, bias, np.float32), "bias"))
    nodes.append(helper.make_node("Add", [last, "bias"], ["y"]))
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width]) for name in ("x", "y")]
    signature = Signature("inference", (Tensor("x", "FP32", (-1, width)),), (Tensor("y", "FP32", (-1, width)),), ())
    golden = {
        "inputs": {"x": {"datatype": "FP32", "shape": [1, width], "data": row.tolist()}},
        "outputs": {"y": {"datatype": "FP32", "shape": [1, width], "data": (moved + bias).tolist()}},
    }
    return _save(helper.make_graph(nodes, "heavy", tensors[:1], tensors[1:], weights), folder, signature, golden)


def looping(folder: Path) -> Path:
    """`y = trips` over [n] INT64, after a loop that turns as often as the largest of them says: FOR_EVER hangs."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still"]), helper.make_node("Identity", ["value"], ["same"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.INT64, ["n"]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("same", TensorProto.INT64, ["n"]),
        ],
    )
    nodes = [
        helper.make_node("ReduceMax", ["trips"], ["most"], keepdims=0),
        helper.make_node("Loop", ["most", "true", "trips"], ["y"], body=body),
    ]
    tensors = [helper.make_tensor_value_info(name, TensorProto.INT64, ["n"]) for name in ("trips", "y")]
    true = numpy_helper.from_array(np.array(True), "true")  # noqa: FBT003 - a value, not a switch
    signature = Signature("inference", (Tensor("trips", "INT64", (-1,)),), (Tensor("y", "INT64", (-1,)),), ())
    rows = {"datatype": "INT64", "shape": [2], "data": [1, 3]}
    golden = {"inputs": {"trips": rows}, "outputs": {"y": rows}}
    return _save(helper.make_graph(nodes, "looping", tensors[:1], tensors[1:], [true]), folder, signature, golden)


def source(folder: Path, endpoint: str, version: int = 1, *, max_queue: int = 64, max_batch: int = 8) -> ModelSource:
    """The model of a folder behind an endpoint."""
    limits = Batching(max_batch=max_batch, max_queue=max_queue)
    return ModelSource(endpoint, endpoint, version, "fp32", folder, folder / "model.onnx", limits)
