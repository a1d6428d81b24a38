"""A linear model whose versions differ in their weights, imported into a running platform, and its right answers."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.support.platform import Platform

COLUMNS, OUTPUTS = 16, 4
Matrix = np.ndarray[Any, np.dtype[np.float32]]


def weights(version: int) -> Matrix:
    """Of the version with this number."""
    return np.random.default_rng(version).standard_normal((COLUMNS, OUTPUTS)).astype(np.float32)


def import_linear(platform: Platform, model: str, versions: int) -> None:
    """Import versions 1, 2, … of `x [n, COLUMNS] times weights`."""
    for version in range(1, versions + 1):
        content = _linear(weights(version)).SerializeToString()
        job = platform.call("POST", f"/api/v1/models/{model}/versions", 202, files={"model": content})
        platform.wait(job["id"], "succeeded")


def route(platform: Platform, endpoint: str, model: str, version: int) -> Any:
    """Route the endpoint to a version: the answer's document, once every process has followed."""
    body = {"model": model, "routes": [{"version": version}]}
    answer = platform.client.put(f"/api/v1/endpoints/{endpoint}", json=body)
    assert answer.status_code in {200, 201}, answer.text
    return answer.json()


def _linear(matrix: Matrix) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "W"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", COLUMNS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", OUTPUTS])],
        [numpy_helper.from_array(matrix, "W")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
