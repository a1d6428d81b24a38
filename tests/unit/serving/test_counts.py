"""How many elements a request holds is known before they are made, and what was made for a large one is let go."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.core.errors import AimassError, InvalidTensor, PayloadTooLarge
from app.core.signature import Signature, Tensor
from app.serving import oip_request, tensors
from app.serving.instances import instance_decoder
from app.serving.oip import OipCodec

MANY = 30_000


def codec(kind: Any, *row: int, most: float = 1 << 20) -> OipCodec:
    value = Tensor("value", "FP32", (-1,))
    return OipCodec("m", Signature("inference", (Tensor("x", kind, (-1, *row)),), (value,), ()), most)


def request(kind: str, shape: list[int], data: Any) -> bytes:
    return json.dumps({"inputs": [{"name": "x", "datatype": kind, "shape": shape, "data": data}]}).encode()


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes these functions raise."""

    def forbid(module: Any, *names: str) -> None:
        def touched(*_: Any) -> Any:
            raise AssertionError("the data was touched")

        for name in names:
            monkeypatch.setattr(module, name, touched)

    return forbid


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        ("FP32", [1.5] * MANY + [None], f"`data` holds at least {MANY + 1} elements, its shape [1, 3] needs 3"),
        ("INT64", [1] * MANY + [2**70], f"`data` holds at least {MANY + 1} elements"),
        ("FP32", [[1, 2, 3]] * MANY + [None], "nested as its shape [1, 3]"),
        ("FP32", [[]] * MANY, "nested as its shape [1, 3]"),
        ("BYTES", ["a,b"] * MANY, "`data` holds at least 4 elements, its shape [1, 3] needs 3"),
        ("BYTES", [['a\\"[']] * MANY, "nested as its shape [1, 3]"),
        ("BYTES", [[]] * MANY, "nested as its shape [1, 3]"),
    ],
)
def test_too_many_elements_are_refused_before_they_are_made(
    untouched: Callable[..., None], kind: str, data: Any, words: str
):
    untouched(tensors, "_decoder")
    untouched(oip_request, "_numbers")
    with pytest.raises(InvalidTensor) as refused:
        codec(kind, 3).decode(request(kind, [1, 3], data), None)
    assert words in refused.value.detail


@pytest.mark.parametrize(
    ("row", "shape", "data"),
    [
        ((3,), [MANY, 3], ["a,b"] * 3 * MANY),
        ((3,), [MANY, 3], [['[",', "b\\", ""]] * MANY),
        ((-1,), [MANY, 0], [[]] * MANY),
        ((0, 3), [1, 0, 3], []),
    ],
)
def test_as_many_as_the_shape_needs_are_read_whatever_is_in_them(row: Any, shape: list[int], data: Any):
    raw = request("BYTES", shape, data)
    read = codec("BYTES", *row).decode(raw.replace(b'"data": [', b'"data": [' + b" " * (1 << 17)), None)
    np.testing.assert_array_equal(read.inputs[0], np.array(data, object).reshape(shape))


@pytest.mark.parametrize(
    ("shape", "error", "words"),
    [
        ([MANY, 1], InvalidTensor, "unexpected shape for input 'x' for model 'm'. Expected [-1, 3], got [30000, 1]"),
        ([101, 3], PayloadTooLarge, "101 rows are more than the endpoint queues (100)"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused_before_its_data_is_touched(
    untouched: Callable[..., None], shape: list[int], error: type[AimassError], words: str
):
    untouched(oip_request, "_lists", "_numbers")
    data = np.ones(shape).tolist()
    with pytest.raises(error) as refused:
        codec("FP32", 3, most=100).decode(request("FP32", shape, data) + b" " * 5000, None)
    assert words in refused.value.detail


@pytest.mark.parametrize(("bytes_more", "kept"), [(5000, True), (1 << 20, False)])
def test_a_parser_that_has_read_much_is_not_kept(picture_folder: Path, bytes_more: int, *, kept: bool):
    more = b" " * bytes_more
    codec("FP32", 3).decode(request("FP32", [1, 3], [1, 2, 3]) + more, None)
    assert (oip_request._local.parser is not None) == kept
    images = instance_decoder(Signature.from_json(json.loads((picture_folder / "signature.json").read_text())))
    images(json.dumps({"instances": [[[0, 1, 2], [3, 4, 5]]]}).encode() + more)
    assert (images._local.parser is not None) == kept  # type: ignore[attr-defined]
