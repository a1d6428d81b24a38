"""Read an ONNX file that anybody may have made.

Everything is bounded before it is allocated, and nothing is opened that was not sent with it.
"""

from collections.abc import Mapping
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto

from app.core.errors import InvalidData
from workers.intake.graphs import check_graphs, tensors_of
from workers.intake.tensors import check_tensor

MAX_BYTES = 2**31 - 1  # of one protobuf message; larger models keep their tensors as external data


def read_untrusted(path: Path, beside: Mapping[str, int]) -> ModelProto:
    """The model, its tensors checked against their claims but external ones not loaded.

    Args:
        path: the file, in the folder that holds the external data as well.
        beside: sizes in bytes of the other files that were sent, by name.

    Raises:
        InvalidData: names the node, operator, tensor or file that is wrong.
    """
    if path.stat().st_size > MAX_BYTES:
        raise InvalidData.at("model", msg="the file is over 2 GiB; export it with its tensors as external data")
    model = ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        raise InvalidData.at("model", msg="the file is not an ONNX model, or was cut off") from None
    for tensor in tensors_of(model):
        check_tensor(tensor, beside)
    check_graphs(model)
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise InvalidData.at("model", msg=f"the ONNX checker refuses it: {_first_line(error)}") from None
    return model


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:500]
