"""Runs of a model whose values decide how many rows it answers."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from app.core.errors import AimassError, InvalidTensor
from app.core.signature import Signature, Tensor
from app.serving.provider import Provider
from app.serving.runs import RunWatch
from app.serving.session import Session

INFO = helper.make_tensor_value_info


def session(folder: Path, task: Any) -> Session:
    """`y` is those rows of `x` whose only number is over 0."""
    nodes = [
        helper.make_node("Flatten", ["x"], ["rows"], axis=1),
        helper.make_node("Squeeze", ["rows", "one"], ["flat"]),
        helper.make_node("Greater", ["flat", "zero"], ["chosen"]),
        helper.make_node("Compress", ["x", "chosen"], ["y"], axis=0),
    ]
    constants = [helper.make_tensor("one", TensorProto.INT64, [1], [1]), helper.make_tensor("zero", 1, [], [0.0])]
    tensors = [INFO("x", TensorProto.FLOAT, ["n", 1])], [INFO("y", TensorProto.FLOAT, ["m", 1])]
    graph = helper.make_graph(nodes, "compress", *tensors, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "m.onnx")
    signature = Signature(task, (Tensor("x", "FP32", (-1, 1)),), (Tensor("y", "FP32", (-1, 1)),), ())
    return Session(folder / "m.onnx", signature, 1, Provider(), RunWatch(30.0, 0))


@pytest.mark.parametrize(("task", "error"), [("inference", InvalidTensor), ("regression", AimassError)])
def test_values_that_make_other_rows_are_the_callers(tmp_path: Path, task: str, error: type[AimassError]):
    made = session(tmp_path, task)
    assert made.run((np.array([[1], [2]], np.float32),))[0].tolist() == [[1], [2]]
    with pytest.raises(AimassError, match=r"output 'y'.* shape \[1, 1\] for 2 rows") as refused:
        made.run((np.array([[1], [0]], np.float32),))
    assert type(refused.value) is error
