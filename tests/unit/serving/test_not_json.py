"""Numbers that JSON does not have are named, with what to send instead."""

import json
from typing import Any

import pytest

from app.core.errors import Malformed
from app.core.signature import Signature, Tensor
from app.serving.instances import instance_decoder
from app.serving.oip import OipCodec

PAIR = Signature(
    "inference", (Tensor("x", "FP32", (-1, 2)), Tensor("y", "FP64", (-1, 2))), (Tensor("z", "FP32", (-1, 2)),), ()
)
NUMBERS = [("NaN", float("nan")), ("Infinity", float("inf")), ("-Infinity", float("-inf"))]
REMEDY = "send null where the model takes missing values, or binary tensors of the Open Inference Protocol"


@pytest.mark.parametrize("pad", [0, 5000, 70_000])
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize(("text", "number"), NUMBERS)
def test_an_infer_request_with_such_a_number(text: str, number: float, pad: int, *, flat: bool):
    first = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0], "parameters": {"pad": "NaN" * pad}}
    data: Any = [1.0, number] if flat else [[1.0, number]]
    second = {"data": data, "parameters": {"a": 1}, "name": "y", "datatype": "FP64", "shape": [1, 2]}
    body = json.dumps({"inputs": [first, second]}).encode()
    with pytest.raises(Malformed) as refused:
        OipCodec("m", PAIR).decode(body, None)
    at = body.rindex(text.encode())
    [error] = refused.value.errors
    assert error.loc == (("inputs",) if pad == 70_000 else ("inputs", "y", "data"))
    assert error.msg == f"JSON has no {text} (byte {at}): {REMEDY}"


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(("text", "number"), NUMBERS)
def test_nested_instances_with_such_a_number(text: str, number: float, *, named: bool):
    one = Signature("inference", PAIR.inputs[:1], PAIR.outputs, ())
    row = [1.0, number]
    with pytest.raises(Malformed) as refused:
        instance_decoder(one)(json.dumps({"instances": [{"x": row} if named else row]}).encode())
    [error] = refused.value.errors
    assert error.loc == ("instances",)
    assert f"JSON has no {text} (byte" in error.msg
    assert REMEDY in error.msg


@pytest.mark.parametrize("body", [b'{"inputs": [Nope]}', b'{"inputs": [nan]}', b'{"inputs": [', b"", b"-", b"["])
def test_what_is_no_such_number_is_malformed_as_it_was(body: bytes):
    with pytest.raises(Malformed, match="the inference request is malformed: "):
        OipCodec("m", PAIR).decode(body, None)
