"""Open Inference Protocol bytes to tensors and back, without a server."""

import json
import re
import struct
from collections import Counter
from typing import Any

import numpy as np
import pytest

from app.core.errors import AimassError, InvalidTensor, Malformed, NotBuilt, PayloadTooLarge
from app.core.signature import Signature, Tensor
from app.serving.effort import Wanted
from app.serving.oip import OipCodec

ALL = Signature(
    "regression",
    tuple(
        Tensor(kind.lower(), kind, (-1, 2))  # type: ignore[arg-type]
        for kind in ("BOOL", "UINT8", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES")
    ),
    (Tensor("value", "FP32", (-1,)), Tensor("words", "BYTES", (-1, 1)), Tensor("half", "FP16", (-1,))),
    (),
)
ONE = Signature("regression", (Tensor("x", "FP32", (-1, 3)),), (Tensor("value", "FP32", (-1,)),), ())
TEXT = Signature("regression", (Tensor("t", "BYTES", (-1,)),), (Tensor("value", "FP32", (-1,)),), ())


def one(data: Any = None, **more: Any) -> dict[str, Any]:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3], **more}
    return tensor if data is None else tensor | {"data": data}


def decode(signature: Signature, *inputs: dict[str, Any], raw: bytes = b"", binary: bool = False, **more: Any) -> Any:
    header = json.dumps({"inputs": inputs, **more}).encode()
    return OipCodec("m", signature).decode(header + raw, len(header) if binary or raw else None)


def test_every_datatype_binary_and_json_mixed():
    blobs = {
        "BOOL": b"\x01\x00",
        "INT32": struct.pack("<2i", -5, 2**31 - 1),
        "FP16": np.array([0.5, -2], "<f2").tobytes(),
        "FP64": struct.pack("<2d", 1e300, -0.1),
        "BYTES": struct.pack("<I", 3) + "é!".encode() + struct.pack("<I", 0),
    }
    inputs = [
        {"name": k.lower(), "datatype": k, "shape": [1, 2], "parameters": {"binary_data_size": len(v)}}
        for k, v in blobs.items()
    ]
    inputs += [
        {"name": "uint8", "datatype": "UINT8", "shape": [1, 2], "data": [[0, 255]]},
        {"name": "int64", "datatype": "INT64", "shape": [1, 2], "data": [-(2**63), 2**63 - 1]},
        {"name": "fp32", "datatype": "FP32", "shape": [1, 2], "data": [1, None]},
    ]
    read = decode(ALL, *inputs, raw=b"".join(blobs.values()))
    assert read.rows == 1
    got = {tensor.datatype: array.tolist() for tensor, array in zip(ALL.inputs, read.inputs, strict=True)}
    assert np.isnan(got["FP32"][0].pop())
    assert got == {
        "BOOL": [[True, False]],
        "UINT8": [[0, 255]],
        "INT32": [[-5, 2**31 - 1]],
        "INT64": [[-(2**63), 2**63 - 1]],
        "FP16": [[0.5, -2.0]],
        "FP32": [[1.0]],
        "FP64": [[1e300, -0.1]],
        "BYTES": [["é!", ""]],
    }
    for tensor, array in zip(ALL.inputs, read.inputs, strict=True):
        assert array.shape == (1, 2), tensor


@pytest.mark.parametrize("count", [2, 2000])  # either side of the size from which simdjson reads
def test_json_data_flat_or_nested(count: int):
    values = np.random.default_rng(count).normal(size=(count, 3)).astype(np.float32)
    for data in (values.tolist(), values.ravel().tolist()):
        read = decode(ONE, one(data, shape=[count, 3]), id="7", parameters={"own": "x"})
        np.testing.assert_array_equal(read.inputs[0], values)
        assert (read.id, read.rows) == ("7", count)


@pytest.mark.parametrize("filler", [0, 3000])
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("1", "Expected `float"),
        (True, "Expected `float"),
        (1e39, "<= 3.4"),
        ([1, "2"], "Expected `float"),
        ({}, "Expected `float"),
    ],
)
def test_a_json_element_of_another_type_is_refused(filler: int, bad: Any, words: str):
    data = [0.5] * filler + [1.5, 2.5, bad]
    with pytest.raises(InvalidTensor) as refused:
        decode(ONE, one(data, shape=[1 + filler // 3, 3]))
    assert words in refused.value.detail


@pytest.mark.parametrize("repeat", [1, 2000])  # either side of the size from which simdjson reads
@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ([[1, 2, 3, 4], [5, 6]], [2, 3]),
        ([[1, 2], [3, 4], [5, 6]], [2, 3]),
        ([[1, 2, 3, 4, 5, 6]], [2, 3]),
        ([[[1], [2], [3]], [[4], [5], [6]]], [2, 3]),
        ([[1, 2, 3], [4, 5, [6]]], [2, 3]),
        ([[1, 2, 3], 4, 5, 6], [2, 3]),
        ([1, 2, 3, [4, 5, 6]], [2, 3]),
        ([[], [1, 2, 3], [4, 5, 6]], [2, 3]),
        ([[], 1, 2, 3, 4, 5, 6], [2, 3]),
    ],
)
@pytest.mark.parametrize("kind", ["FP32", "BYTES"])
def test_nested_data_has_the_declared_shape_however_long_the_body(
    row: list[Any], shape: list[int], repeat: int, kind: str
):
    signature = Signature("regression", (Tensor("x", kind, (-1, 3)),), ONE.outputs, ())  # type: ignore[arg-type]
    rows = row * repeat
    data = json.loads(re.sub(r"\d", '"a"', json.dumps(rows))) if kind == "BYTES" else rows
    with pytest.raises(InvalidTensor, match=r"nested as its shape|Expected `"):
        decode(signature, one(data, datatype=kind, shape=[shape[0] * repeat, 3]))


@pytest.mark.parametrize("repeat", [1, 2000])
def test_data_nested_three_deep(repeat: int):
    signature = Signature("regression", (Tensor("x", "INT64", (-1, 2, 2)),), ONE.outputs, ())
    values = np.arange(4 * repeat).reshape(repeat, 2, 2)
    for more in ({}, {"outputs": [{"name": "value"}]}, {"outputs": None}, {"parameters": {"brackets": "[["}}):
        read = decode(signature, one(values.tolist(), datatype="INT64", shape=list(values.shape)), **more)
        np.testing.assert_array_equal(read.inputs[0], values)
    with pytest.raises(InvalidTensor, match="nested as its shape"):
        decode(signature, one(values.reshape(repeat, 4).tolist(), datatype="INT64", shape=list(values.shape)))


@pytest.mark.parametrize("count", [3, 3000])
def test_the_last_of_a_repeated_key_counts_however_long_the_body(count: int):
    fields = [f'"shape": [1, {count}]', f'"shape": [{count // 3}, 3]', '"data": [1]', f'"data": {[2] * count}']
    tensor = '"name": "y", "name": "x", "datatype": "FP32", ' + ", ".join(fields)
    more = '"parameters": {"timeout": 1, "timeout": 2000000}'
    header = f'{{"id": "1", "id": "2", "inputs": [], "inputs": [{{{tensor}}}], {more}}}'
    read = OipCodec("m", ONE).decode(header.encode(), None)
    assert (read.id, read.timeout_s, read.inputs[0].tolist()) == ("2", 2.0, [[2, 2, 2]] * (count // 3))


@pytest.mark.parametrize("filler", [0, 3000])
def test_the_largest_float_may_be_rounded(filler: int):
    largest = float(np.finfo(np.float32).max)
    read = decode(ONE, one([0.5] * filler + [3.4028235e38, -3.4028235e38, 1], shape=[1 + filler // 3, 3]))
    assert read.inputs[0][-1].tolist() == [largest, -largest, 1]


@pytest.mark.parametrize("filler", [0, 3000])
def test_json_null_is_nan_in_floats(filler: int):
    read = decode(ONE, one([0.5] * filler + [1, None, 2], shape=[1 + filler // 3, 3]))
    np.testing.assert_array_equal(read.inputs[0][-1], np.array([1, np.nan, 2], np.float32))


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (one([1, 2]), "`data` holds 2 elements, its shape [1, 3] needs 3"),
        (one([1, 2, 3], shape=[1, 4]), "unexpected shape for input 'x' for model 'm'. Expected [-1, 3], got [1, 4]"),
        (one([1, 2, 3], shape=[3]), "Expected [-1, 3], got [3]"),
        (one([], shape=[0, 3]), "at least 1"),
        (one([1, 2, 3], shape=[-1, -3]), "got [-1, -3]"),
        (one([1, 2, 3], datatype="FP64"), "data-type is 'FP64', but model 'm' expects 'FP32'"),
        (one([1, 2, 3], name="y"), "unexpected inference input 'y' for model 'm'"),
        (one(), "neither `data` nor `binary_data_size`"),
        (one([[[1, 2, 3]]]), "flat list or nested"),
        (one([[1, 2], [3]]), ""),
        (one(5), "flat list or nested"),
        (one([1, 2, 3], parameters={"binary_data_size": 12}), "both"),
        (one(parameters={"binary_data_size": "12"}), "whole number"),
        (one(parameters={"binary_data_size": -1}), "whole number"),
        (one(parameters={"binary_data_size": 12}), "expecting 12 additional bytes for model 'm'"),
    ],
)
def test_a_bad_input_is_named(tensor: dict[str, Any], words: str):
    with pytest.raises((InvalidTensor, Malformed)) as refused:
        decode(ONE, tensor)
    assert words in refused.value.detail


def test_huge_shapes_cost_nothing():
    with pytest.raises(InvalidTensor):
        decode(ONE, one([1, 2, 3], shape=[2**62, 3]))
    with pytest.raises(InvalidTensor):
        decode(
            TEXT,
            {"name": "t", "datatype": "BYTES", "shape": [2**40], "parameters": {"binary_data_size": 4}},
            raw=b"\0" * 4,
        )


@pytest.mark.parametrize("given", [{"data": []}, {"parameters": {"binary_data_size": 0}}])
@pytest.mark.parametrize(
    ("shape", "fits"),
    [([1, 0, 2**31 - 1, 2**31 - 1], False), ([1, 0, 2**30, 2**30], False), ([1, 0, 2**30, 2**29], True)],
)
def test_a_shape_that_numpy_cannot_count_is_refused(given: dict[str, Any], shape: list[int], *, fits: bool):
    signature = Signature("inference", (Tensor("x", "FP64", (-1, -1, -1, -1)),), ONE.outputs, ())
    tensor = {"name": "x", "datatype": "FP64", "shape": shape, **given}
    if fits:
        assert decode(signature, tensor, binary="parameters" in given).inputs[0].shape == tuple(shape)
        return
    with pytest.raises(InvalidTensor, match=r"make 2\^60 elements or more"):
        decode(signature, tensor, binary="parameters" in given)


def test_too_many_rows_are_refused_before_their_elements_are_read():
    rejected: Counter[str] = Counter()
    codec = OipCodec("m", TEXT, 100, rejected)
    tensor = {"name": "t", "datatype": "BYTES", "parameters": {"binary_data_size": 1}}
    header = json.dumps({"inputs": [tensor | {"shape": [101]}]}).encode()
    with pytest.raises(PayloadTooLarge, match=r"101 rows are more than the endpoint queues \(100\)"):
        codec.decode(header + b"?", len(header))
    assert rejected == {"too_large": 1}
    header = json.dumps({"inputs": [tensor | {"shape": [100]}]}).encode()
    with pytest.raises(InvalidTensor, match="unexpected size"):
        codec.decode(header + b"?", len(header))


def test_the_number_of_inputs_must_be_right():
    with pytest.raises(InvalidTensor, match="expected 1 inputs but got 2 inputs for model 'm'"):
        decode(ONE, one([1, 2, 3]), one([1, 2, 3]))
    pair = Signature("regression", (Tensor("a", "FP32", (-1,)), Tensor("b", "FP32", (-1,))), ONE.outputs, ())
    twice = {"name": "a", "datatype": "FP32", "shape": [1], "data": [1]}
    with pytest.raises(InvalidTensor, match="given twice"):
        decode(pair, twice, twice)
    with pytest.raises(InvalidTensor, match="differ in their first dimension"):
        decode(pair, twice, {"name": "b", "datatype": "FP32", "shape": [2], "data": [1, 2]})


@pytest.mark.parametrize(
    "raw",
    [
        struct.pack("<I", 5) + b"abc",  # length beyond the end
        struct.pack("<I", 1) + b"a" + b"\0\0",  # half a length
        struct.pack("<I", 1) + b"a" + struct.pack("<I", 1) + b"b" + b"?",  # left over
        struct.pack("<I", 1) + b"\xff" + struct.pack("<I", 0),  # not UTF-8
    ],
)
def test_broken_bytes_tensors_are_refused(raw: bytes):
    tensor = {"name": "t", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(raw)}}
    with pytest.raises(InvalidTensor):
        decode(TEXT, tensor, raw=raw)


def test_wrong_binary_sizes_are_refused():
    with pytest.raises(InvalidTensor, match="unexpected additional input data for model 'm'"):
        decode(ONE, one(parameters={"binary_data_size": 12}), raw=b"\0" * 13)
    with pytest.raises(InvalidTensor, match="expecting 12 bytes for model 'm', got 8"):
        decode(ONE, one(parameters={"binary_data_size": 8}), raw=b"\0" * 8)


def test_a_header_length_of_the_whole_body_is_all_json():
    """Client trap 2: C++ sends the header length for bodies without binary tensors too."""
    header = json.dumps({"inputs": [one([1, 2, 3])]}).encode()
    assert OipCodec("m", ONE).decode(header, len(header)).inputs[0].tolist() == [[1, 2, 3]]
    with pytest.raises(Malformed, match=r"should be in range \(0, "):
        OipCodec("m", ONE).decode(header, len(header) + 1)


def test_a_raw_request_is_one_tensor_and_answers_binary():
    read = OipCodec("m", ONE).decode(struct.pack("<3f", 1, 2, 3), 0)
    assert (read.inputs[0].tolist(), read.rows, read.outputs) == ([[1, 2, 3]], 1, [(0, True, 0)])
    assert OipCodec("m", TEXT).decode("née".encode(), 0).inputs[0].tolist() == ["née"]
    variable = Signature("regression", (Tensor("x", "INT32", (-1, -1, 2)),), ONE.outputs, ())
    assert OipCodec("m", variable).decode(struct.pack("<4i", 1, 2, 3, 4), 0).inputs[0].tolist() == [[[1, 2], [3, 4]]]
    with pytest.raises(InvalidTensor, match="expecting 12 bytes"):
        OipCodec("m", ONE).decode(b"\0" * 11, 0)
    with pytest.raises(InvalidTensor, match="needs a model with one input"):
        OipCodec("m", ALL).decode(b"\0", 0)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'{"inputs": {}}',
        b'{"inputs": [3]}',
        b'{"inputs": [{"name": "x"}]}',
        b"\xff",
        b"[" * 9000,
        b"{" * 9000,
    ],
)
def test_a_malformed_header_is_malformed(raw: bytes):
    with pytest.raises(Malformed):
        OipCodec("m", ONE).decode(raw, None)


def test_client_fields_cannot_pass_for_parsed_data():
    with pytest.raises(InvalidTensor, match="neither"):
        decode(ONE, one(parsed=[1, 2, 3], _data=[1]))


@pytest.mark.parametrize("filler", [0, 3000])
def test_fp16_has_no_json_form(filler: int):
    half = Signature("regression", (Tensor("h", "FP16", (-1,)),), ONE.outputs, ())
    with pytest.raises(InvalidTensor, match="FP16 has no JSON form"):
        decode(half, {"name": "h", "datatype": "FP16", "shape": [1 + filler], "data": [1.0] * (1 + filler)})


@pytest.mark.parametrize(
    ("parameters", "outputs", "chosen"),
    [
        (None, None, [(0, False, 0), (1, False, 0), (2, False, 0)]),
        ({"binary_data_output": True}, None, [(0, True, 0), (1, True, 0), (2, True, 0)]),
        ({"binary_data_output": True}, [{"name": "words"}], [(1, True, 0)]),
        (
            {"binary_data_output": True},
            [{"name": "words", "parameters": {"binary_data": False}}, {"name": "value"}],
            [(1, False, 0), (0, True, 0)],
        ),
        (None, [{"name": "value", "parameters": {"binary_data": True}}], [(0, True, 0)]),
        (None, [{"name": "value", "parameters": {"classification": 2}}], [(0, False, 2)]),
    ],
)
def test_output_selection(parameters: Any, outputs: Any, chosen: list[tuple[int, bool, int]]):
    """Client trap 3: a client that names no outputs asks for all of them as binary data."""
    more = {key: value for key, value in (("parameters", parameters), ("outputs", outputs)) if value is not None}
    signature = Signature("regression", ONE.inputs, ALL.outputs, ())
    assert decode(signature, one([1, 2, 3]), **more).outputs == chosen


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"outputs": [{"name": "nope"}]}, InvalidTensor),
        ({"outputs": [{"name": "value", "parameters": {"binary_data": "yes"}}]}, Malformed),
        ({"outputs": [{"name": "value", "parameters": {"classification": 0}}]}, Malformed),
        ({"outputs": [{"name": "value", "parameters": {"classification": True}}]}, Malformed),
        ({"outputs": [{"name": "value", "parameters": {"classification": "2"}}]}, Malformed),
        ({"outputs": [{"name": "value", "parameters": {"shared_memory_region": "r"}}]}, NotBuilt),
        ({"parameters": {"triton_x": 1}}, Malformed),
        ({"parameters": {"sequence_id": 5}}, NotBuilt),
        ({"parameters": {"timeout": -1}}, Malformed),
        ({"parameters": {"timeout": "1"}}, Malformed),
    ],
)
def test_reserved_parameters(more: dict[str, Any], error: type[AimassError]):
    """Client trap 9: what has a meaning of its own and cannot be honoured is refused."""
    with pytest.raises(error):
        decode(ONE, one([1, 2, 3]), **more)


@pytest.mark.parametrize("more", [{}, {"parameters": {"classification": 2}}])
def test_an_output_is_answered_once(more: dict[str, Any]):
    outputs = [{"name": "value"}, {"name": "value", **more}]
    with pytest.raises(InvalidTensor, match="output 'value' is asked for twice") as refused:
        decode(ONE, one([1, 2, 3]), outputs=outputs)
    assert refused.value.errors[0].loc == ("outputs", "value")


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (
            {"timeout": 10**15 + 1},
            "parameters.timeout: must be a whole number of microseconds, at most 1000000000000000",
        ),
        (
            {"priority": 2**64},
            "parameters.priority: must be a whole number, 1 for the highest, at most 18446744073709551615",
        ),
    ],
)
def test_a_control_that_is_too_large_is_told_the_bound(parameters: dict[str, Any], words: str):
    with pytest.raises(Malformed) as refused:
        decode(ONE, one([1, 2, 3]), parameters=parameters)
    assert refused.value.detail == words


@pytest.mark.parametrize("filler", [0, 3000])
@pytest.mark.parametrize(
    ("kind", "value", "range_"),
    [
        ("INT64", 2**63, "from -9223372036854775808 to 9223372036854775807"),
        ("INT64", 2**70, "from -9223372036854775808 to 9223372036854775807"),
        ("INT64", -(2**63) - 1, "from -9223372036854775808 to 9223372036854775807"),
        ("UINT64", 2**64, "from 0 to 18446744073709551615"),
    ],
)
def test_an_integer_beyond_64_bits_is_told_the_range(kind: Any, value: int, range_: str, filler: int):
    signature = Signature("regression", (Tensor("x", kind, (-1,)),), ONE.outputs, ())
    with pytest.raises(InvalidTensor) as refused:
        decode(signature, one([1] * filler + [value], datatype=kind, shape=[filler + 1]))
    assert refused.value.detail == f"inputs.x.data: 'x' is {kind}, which goes {range_}"


def test_the_timeout_is_in_microseconds():
    """Client trap 9: reserved parameters are read, and others pass."""
    read = decode(
        ONE,
        one([1, 2, 3]),
        parameters={"timeout": 2_500_000, "priority": 1, "sequence_id": 0, "headers": "x", "mine": True},
    )
    assert read.timeout_s == 2.5
    assert decode(ONE, one([1, 2, 3]), parameters={"timeout": 0}).timeout_s is None


def test_encode_mixed():
    outputs = (np.array([1.5, np.nan], np.float32), np.array([["a"], ["é"]], object), np.array([0.5, 2], np.float16))
    codec = OipCodec("m", ALL)
    encoded = codec.encode(
        outputs, [Wanted(1, binary=True), Wanted(0, binary=False), Wanted(2, binary=True)], "3", "id-1"
    )
    assert encoded.header_length is not None
    header = json.loads(encoded.body[: encoded.header_length])
    assert header == {
        "model_name": "m",
        "model_version": "3",
        "id": "id-1",
        "outputs": [
            {"name": "words", "datatype": "BYTES", "shape": [2, 1], "parameters": {"binary_data_size": 11}},
            {"name": "value", "datatype": "FP32", "shape": [2], "data": [1.5, None]},
            {"name": "half", "datatype": "FP16", "shape": [2], "parameters": {"binary_data_size": 4}},
        ],
    }
    blob = encoded.body[encoded.header_length :]
    assert blob == b"\1\0\0\0a\2\0\0\0\xc3\xa9" + np.array([0.5, 2], "<f2").tobytes()
    plain = codec.encode(outputs, [Wanted(1, binary=False)], "3", None)
    assert plain.header_length is None
    assert "id" not in json.loads(plain.body)
    assert json.loads(plain.body)["outputs"][0]["data"] == ["a", "é"]
    with pytest.raises(InvalidTensor, match="FP16"):
        codec.encode(outputs, [Wanted(2, binary=False)], "3", None)
