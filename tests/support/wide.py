"""A model whose answers are much larger than what it is asked: a row of one number gives `WIDTH` numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from app.core.signature import Signature, Tensor
from app.serving.host import Batching, ModelSource
from tests.support.imports import route
from tests.support.platform import KEY, Platform

WIDTH = 1 << 20  # 4 MiB a row
FACTORS = np.arange(WIDTH, dtype=np.float32)


def wide_model(width: int = WIDTH, more: int = 0) -> onnx.ModelProto:
    """`x [n, 1] times FACTORS`, which is `y [n, width]`; its file is larger by `more` bytes that nothing uses."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "W"], ["y"])],
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width])],
        [
            numpy_helper.from_array(FACTORS[:width].reshape(1, -1), "W"),
            numpy_helper.from_array(np.zeros(more, np.uint8), "unused"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def serve_wide(platform: Platform, name: str) -> None:
    """Import it, with a file of 20 MiB, into a running platform, and route an endpoint of the same name to it."""
    content = wide_model(more=16 << 20).SerializeToString()
    job = platform.call("POST", f"/api/v1/models/{name}/versions", 202, files={"model": content})
    platform.wait(job["id"], "succeeded")
    route(platform, name, name, 1)


def wide_source(folder: Path, width: int, limits: Batching, endpoint: str = "wide") -> ModelSource:
    """The same as a version, written into the folder."""
    onnx.save(wide_model(width), folder / "model.onnx")
    signature = Signature("inference", (Tensor("x", "FP32", (-1, 1)),), (Tensor("y", "FP32", (-1, width)),), ())
    golden = {
        "inputs": {"x": {"datatype": "FP32", "shape": [1, 1], "data": [1]}},
        "outputs": {"y": {"datatype": "FP32", "shape": [1, width], "data": FACTORS[:width].tolist()}},
    }
    (folder / "signature.json").write_text(json.dumps(signature.to_json()))
    (folder / "golden.json").write_text(json.dumps(golden))
    return ModelSource(endpoint, "wide", 1, "fp32", folder, folder / "model.onnx", limits)


def infer(name: str, rows: np.ndarray[Any, np.dtype[np.float32]], pad: int = 0) -> bytes:
    """A request over HTTP for the rows, all binary, with so many bytes of a parameter that has no effect."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [len(rows), 1], "parameters": {"binary_data_size": rows.nbytes}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True, "pad": "x" * pad}}).encode()
    return (
        f"POST /v2/models/{name}/infer HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\n"
        f"inference-header-content-length: {len(head)}\r\ncontent-length: {len(head) + rows.nbytes}\r\n\r\n"
    ).encode() + b"".join((head, rows.tobytes()))
