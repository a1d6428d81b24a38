"""Bodies of /predict: what is taken, and exactly what is said of the rest."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.core.errors import Corrupt, InvalidTensor, Malformed
from app.core.signature import Column, Signature, Tensor
from app.serving.instances import instance_decoder
from app.serving.predictions import prediction_encoder

GOOD = {"age": 41, "charge €": 2.5, "member": True, "colour": "red"}
Decode = Callable[[bytes], Any]


def body(*instances: Any) -> bytes:
    return json.dumps({"instances": instances}).encode()


@pytest.fixture
def decode(table_folder: Path) -> Decode:
    return instance_decoder(Signature.from_json(json.loads((table_folder / "signature.json").read_text())))


@pytest.fixture
def decode_picture(picture_folder: Path) -> Decode:
    return instance_decoder(Signature.from_json(json.loads((picture_folder / "signature.json").read_text())))


def test_values_go_to_their_tensors_whatever_their_order(decode: Decode):
    shuffled = dict(reversed(GOOD.items())) | {"age": -7, "member": False, "colour": "blau"}
    (numeric, categorical), rows = decode(body(GOOD, shuffled))
    assert rows == 2
    assert numeric.dtype == np.float32
    assert numeric.tolist() == [[41, 2.5, 1], [-7, 2.5, 0]]
    assert categorical.tolist() == [["red"], ["blau"]]


def test_null_is_missing_where_it_is_allowed(decode: Decode):
    (numeric, categorical), _ = decode(body(GOOD | {"charge €": None, "colour": None}))
    assert np.isnan(numeric[0, 1])
    assert categorical.tolist() == [[""]]


@pytest.mark.parametrize("age", [41, 41.0])  # the second takes the careful way
def test_blanks_around_a_text_are_no_part_of_it_as_at_ingest(decode: Decode, age: float):
    (_, categorical), _ = decode(body(GOOD | {"age": age, "colour": " red\u3000\t"}, GOOD))
    assert categorical.tolist() == [["red"], ["red"]]


@pytest.mark.parametrize(
    ("change", "loc", "kind", "words"),
    [
        ({"age": "41"}, "age", "type", "must be an integer, got '41'"),
        ({"age": 41.5}, "age", "type", "must be an integer, got 41.5"),
        ({"age": True}, "age", "type", "must be an integer, got True"),
        ({"age": None}, "age", "null", "null is not accepted"),
        ({"charge €": "NaN"}, "charge €", "type", "must be a number"),
        ({"charge €": float("nan")}, "charge €", "not_finite", "send null for a missing value"),
        ({"charge €": float("inf")}, "charge €", "not_finite", "must be a finite number, got inf"),
        ({"charge €": 1e39}, "charge €", "range", "32-bit"),
        ({"charge €": [1]}, "charge €", "type", "must be a number, got [1]"),
        ({"member": 1}, "member", "type", "must be true or false, got 1"),
        ({"member": "true"}, "member", "type", "must be true or false"),
        ({"colour": 3}, "colour", "type", "must be a text, got 3"),
        ({"salary": 3}, "salary", "unknown_column", "unknown column; the model has age, charge €, member, colour"),
    ],
)
def test_a_bad_value_is_named(decode: Decode, change: dict[str, Any], loc: str, kind: str, words: str):
    with pytest.raises(InvalidTensor) as refused:
        decode(body(GOOD, GOOD | change))
    (error,) = refused.value.errors
    assert (error.loc, error.type) == (("instances", 1, loc), kind)
    assert words in error.msg


@pytest.mark.parametrize(
    ("column", "words"), [("charge €", "send null"), ("colour", "send null"), ("age", "the model needs this integer")]
)
def test_a_missing_column_is_an_error_that_says_what_to_send(decode: Decode, column: str, words: str):
    instance = {name: value for name, value in GOOD.items() if name != column}
    with pytest.raises(InvalidTensor) as refused:
        decode(body(instance))
    (error,) = refused.value.errors
    assert (error.loc, error.type) == (("instances", 0, column), "missing")
    assert words in error.msg


def test_every_bad_value_is_reported_at_once(decode: Decode):
    with pytest.raises(InvalidTensor) as refused:
        decode(body(GOOD | {"age": "x", "member": 0}, 5, GOOD | {"x": 1}))
    assert [error.loc for error in refused.value.errors] == [
        ("instances", 0, "age"),
        ("instances", 0, "member"),
        ("instances", 1),
        ("instances", 2, "x"),
    ]
    assert "(and 3 more)" in refused.value.detail


def test_reported_errors_are_bounded(decode: Decode):
    with pytest.raises(InvalidTensor) as refused:
        decode(body(*[{}] * 1000))
    assert len(refused.value.errors) == 100
    assert refused.value.detail.endswith("(and at least 99 more)")


def test_an_integer_written_as_a_float_is_taken(decode: Decode):
    (numeric, categorical), rows = decode(body(GOOD | {"age": 41.0}, GOOD | {"age": 2e1}))
    assert (numeric[:, 0].tolist(), categorical.tolist(), rows) == ([41, 20], [["red"], ["red"]], 2)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b'{"instances": [{"age": 1}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"instances": ["\xff"]}',
        b'"x"',
        b"[]",
        b"null",
    ],
)
def test_what_is_not_a_json_object_is_malformed(decode: Decode, raw: bytes):
    with pytest.raises(Malformed):
        decode(raw)


@pytest.mark.parametrize(
    ("raw", "loc"),
    [
        (b"{}", ("instances",)),
        (b'{"instances": []}', ("instances",)),
        (b'{"instances": {}}', ("instances",)),
        (b'{"instances": null}', ("instances",)),
        (b'{"instances": [1], "inputs": 3}', ("inputs",)),
    ],
)
def test_the_body_has_instances_and_nothing_else(decode: Decode, raw: bytes, loc: tuple[str, ...]):
    with pytest.raises(InvalidTensor) as refused:
        decode(raw)
    assert refused.value.errors[0].loc == loc


def test_a_model_of_numbers_only_has_one_tensor():
    columns = (Column("a", "number", "numeric", 0), Column("b", "number", "numeric", 1, nullable=True))
    tensors = (Tensor("numeric", "FP32", (-1, 2)),), (Tensor("value", "FP32", (-1,)),)
    decode = instance_decoder(Signature("regression", *tensors, columns))
    (numeric,), rows = decode(b'{"instances":[{"b":null,"a":1},{"a":2,"b":-3e2}]}')
    assert rows == 2
    np.testing.assert_array_equal(numeric, np.array([[1, np.nan], [2, -300]], np.float32))


def test_columns_must_fill_their_tensor():
    columns = (Column("a", "number", "numeric", 1),)
    tensors = (Tensor("numeric", "FP32", (-1, 2)),), (Tensor("value", "FP32", (-1,)),)
    with pytest.raises(Corrupt, match="do not fill its 2 places"):
        instance_decoder(Signature("regression", *tensors, columns))


PIXELS = np.array([[0, 50, 255], [7, 8, 9]], np.uint8)


def png() -> str:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(
    "instance",
    [
        png(),
        f"data:image/png;base64,{png()}",
        {"photo": png()},
        PIXELS.tolist(),
        [PIXELS.tolist()],
        {"photo": PIXELS.tolist()},
        {"photo": [PIXELS.tolist()]},
    ],
)
def test_a_picture_may_be_base64_or_nested_lists(decode_picture: Decode, instance: Any):
    (image,), rows = decode_picture(body(instance, instance))
    assert (rows, image.dtype, image.shape) == (2, np.uint8, (2, 1, 2, 3))
    np.testing.assert_array_equal(image[1, 0], PIXELS)


@pytest.mark.parametrize(
    ("instance", "words"),
    [
        ("no base64!", "not base64"),
        (base64.b64encode(b"no picture").decode(), ""),
        ([[1, 2], [3, 4]], "got [2, 2]"),
        ([[1, 2, 3], [4, 5]], "differ in length"),
        ([[1, 2, 3], [4, 5, 256]], "got other values"),
        ([[1, 2, 3], [4, 5, -1]], "got other values"),
        ([[1, 2, 3], [4, 5, 6.5]], "got other values"),
        ([[True, 2, 3], [4, 5, "6"]], "got other values"),
        ([[True, False, True], [True, False, True]], "got other values"),
        (7, "must be base64 text or nested lists [1][2][3]"),
        (None, "must be base64 text or nested lists"),
        ([], "got [0]"),
    ],
)
def test_a_bad_picture_is_named(decode_picture: Decode, instance: Any, words: str):
    with pytest.raises(InvalidTensor) as refused:
        decode_picture(body(png(), instance, {"photo": png()}))
    (error,) = refused.value.errors
    assert error.loc == ("instances", 1)
    assert words in error.msg


def test_a_ragged_picture_of_the_right_size_is_refused(decode_picture: Decode):
    with pytest.raises(InvalidTensor):
        decode_picture(body([[1, 2], [3, 4, 5, 6]]))


def test_a_picture_under_a_wrong_name_is_refused(decode_picture: Decode):
    with pytest.raises(InvalidTensor) as refused:
        decode_picture(body({"foto": png()}))
    assert [error.type for error in refused.value.errors] == ["unknown_column", "missing"]


def test_predictions_of_a_classifier(table_folder: Path):
    encode = prediction_encoder(Signature.from_json(json.loads((table_folder / "signature.json").read_text())))
    outputs = (np.array([[0.25, 0.75], [1, 0]], np.float32),)
    assert json.loads(encode(outputs)) == [
        {"label": "yes", "probabilities": {"no": 0.25, "yes": 0.75}},
        {"label": "no", "probabilities": {"no": 1.0, "yes": 0.0}},
    ]


def test_a_value_that_is_not_finite_is_null(picture_folder: Path):
    encode = prediction_encoder(Signature.from_json(json.loads((picture_folder / "signature.json").read_text())))
    assert json.loads(encode((np.array([1.5, np.nan, np.inf], np.float32),))) == [
        {"value": 1.5},
        {"value": None},
        {"value": None},
    ]
