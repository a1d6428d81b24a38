"""Instances of models without columns: nested lists by input name, and predictions by output name."""

import json
from typing import Any

import numpy as np
import pytest

from app.core.errors import InvalidInput, InvalidTensor, Malformed, PayloadTooLarge
from app.core.signature import Signature, Tensor
from app.serving.instances import instance_decoder
from app.serving.predictions import prediction_encoder, v1_encoder
from app.serving.row_limit import RowLimit

PAIR = (Tensor("ids", "INT64", (-1, -1)), Tensor("mask", "BOOL", (-1,)))
OUT = (Tensor("y", "FP32", (-1, 2)),)


def signature(*inputs: Tensor, batched: bool = True, outputs: tuple[Tensor, ...] = OUT) -> Signature:
    return Signature("inference", inputs, outputs, (), batched=batched)


def decode(given: Signature, body: Any) -> Any:
    return instance_decoder(given)(body if isinstance(body, bytes) else json.dumps(body).encode())


def test_rows_of_several_inputs():
    rows = [{"ids": [1, 2, 3], "mask": True}, {"mask": False, "ids": [4, 5, 6]}]
    (ids, mask), count = decode(signature(*PAIR), {"instances": rows})
    assert (ids.dtype, ids.tolist(), mask.tolist(), count) == (np.int64, [[1, 2, 3], [4, 5, 6]], [True, False], 2)


@pytest.mark.parametrize("instances", [[[1, None], [3, 4]], [{"x": [1, None]}, {"x": [3, 4]}]])
def test_one_input_needs_no_name(instances: list[Any]):
    (x,), count = decode(signature(Tensor("x", "FP32", (-1, 2))), {"instances": instances})
    assert (x.dtype, x.shape, count) == (np.float32, (2, 2), 2)
    assert np.isnan(x[0, 1])


def test_scalars_are_rows_too():
    (x,), count = decode(signature(Tensor("x", "BYTES", (-1,))), {"instances": ["a", "数据"]})
    assert (x.tolist(), count) == (["a", "数据"], 2)


def test_a_model_that_does_not_batch_takes_whole_tensors():
    given = signature(Tensor("x", "FP32", (1, 2)), Tensor("c", "BOOL", ()), batched=False)
    (x, c), rows = decode(given, {"instances": [{"x": [[1, 2]], "c": True}]})
    assert (x.tolist(), c.shape, c.item(), rows) == ([[1.0, 2.0]], (), True, 1)
    with pytest.raises(InvalidTensor, match="one instance a request"):
        decode(given, {"instances": [{"x": [[1, 2]], "c": True}] * 2})


@pytest.mark.parametrize(
    ("body", "loc"),
    [
        ({"instances": [{"ids": [1, "a"], "mask": True}]}, ("instances", "ids")),
        ({"instances": [{"ids": [1], "mask": 1}]}, ("instances", "mask")),
        ({"instances": [{"ids": [1]}]}, ("instances",)),
        ({"instances": [{"ids": [1], "mask": True, "more": 1}]}, ("instances",)),
        ({"instances": [{"ids": [1], "mask": True}, {"ids": [1, 2], "mask": True}]}, ("instances", "ids")),
        ({"instances": [{"ids": [2**63], "mask": True}]}, ("instances", "ids")),
        ({"instances": []}, ("instances",)),
        ({"instances": {}}, ("instances",)),
        ({"inputs": []}, ()),
        ({"instances": [], "more": 1}, ()),
    ],
)
def test_what_does_not_fit_is_named(body: Any, loc: tuple[str | int, ...]):
    with pytest.raises(InvalidInput) as refused:
        decode(signature(*PAIR), body)
    found = tuple(step for step in refused.value.errors[0].loc if isinstance(step, str))
    assert found[: len(loc)] == loc


@pytest.mark.parametrize("name", ["a.b[0]:0", "x", "in`s", "instances"])
def test_a_name_that_looks_like_a_path_is_one_step(name: str):
    given = signature(Tensor(name, "FP32", (-1, 2)), Tensor("x.y", "FP32", (-1, 2)))
    good = {name: [1, 2], "x.y": [1, 2]}
    for bad, loc in (
        ([good, good | {name: [1, "a"]}], ("instances", 1, name, 1)),
        ([good | {name: "a"}], ("instances", 0, name)),
        ([good | {"x.y": [1, "a"]}], ("instances", 0, "x.y", 1)),
        ([{name: [1, 2]}], ("instances", 0)),
        (5, ("instances",)),
    ):
        with pytest.raises(InvalidTensor) as refused:
            decode(given, {"instances": bad})
        assert refused.value.errors[0].loc == loc


@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
@pytest.mark.parametrize("instances", [[["1"], ["1", "1"]], [["1", "1"], ["1"], []]])
def test_rows_of_different_shapes_are_refused_as_such(datatype: Any, instances: list[list[str]]):
    raw = json.dumps({"instances": instances})
    with pytest.raises(InvalidTensor, match="all instances need values of one shape") as refused:
        decode(
            signature(Tensor("x", datatype, (-1, -1))),
            (raw if datatype == "BYTES" else raw.replace('"1"', "1")).encode(),
        )
    assert refused.value.errors[0].loc == ("instances", "x")


@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
@pytest.mark.parametrize(("rows", "shape"), [([[], []], (2, 0)), ([[[1, 2]], [[3, 4]]], (2, 1, 2))])
def test_lists_of_any_depth(datatype: Any, rows: Any, shape: tuple[int, ...]):
    raw = json.dumps({"instances": rows}).encode()
    for number in b"1234" if datatype == "BYTES" else b"":
        raw = raw.replace(b"%c" % number, b'"%c"' % number)
    (x,), count = decode(signature(Tensor("x", datatype, (-1,) * len(shape))), raw)
    assert (x.shape, count) == (shape, 2)
    assert x.ravel().tolist() == ([1, 2, 3, 4] if datatype == "FP32" else list("1234"))[: x.size]


@pytest.mark.parametrize(
    ("inner", "row", "rows", "here"),
    [
        ((), b"1", 2000, True),
        ((1,), b"[1]", 1000, True),
        ((1,), b"[1]", 2000, True),
        ((1,), b"[1]", 65_000, False),
        ((), b"1", 5000, False),
        ((), b'{"x":1}', 5000, False),
        ((-1,), b"[]", 60_000, False),
        ((1,) * 20, b"[" * 20 + b"1" + b"]" * 20, 400, False),  # few commas
        ((-1,), b"[%b]" % b",".join([b"1.23456789012345"] * 4000), 1, True),
    ],
)
def test_the_event_loop_decodes_few_values(inner: tuple[int, ...], row: bytes, rows: int, *, here: bool):
    decoder = instance_decoder(signature(Tensor("x", "FP32", (-1, *inner))))
    raw = b'{"instances":[%b]}' % b",".join([row] * rows)
    assert len(raw) <= decoder.inline_bytes
    found = decoder.at_once(raw)
    assert (found is not None) is here
    if found is not None:
        (x,), count = decoder(raw)
        assert (found[1], found[0][0].tolist()) == (count, x.tolist())


def test_more_rows_than_the_endpoint_queues_are_no_tensor(monkeypatch: pytest.MonkeyPatch):
    limit = RowLimit(2)
    decoder = instance_decoder(signature(Tensor("x", "FP32", (-1, 2))), limit)
    assert decoder(b'{"instances":[[1,2],[3,4]]}')[1] == 2
    with pytest.raises(PayloadTooLarge, match="3 rows are more than the endpoint queues"):
        decoder(b'{"instances":[[1,2],[3],[3,4]]}')
    assert limit.rejected == {"too_large": 1}
    monkeypatch.setattr(decoder, "_decoded", None)  # they are counted before
    with pytest.raises(PayloadTooLarge, match="3 rows are more than the endpoint queues"):
        decoder(b'{"instances":[[1,2],[3],[3,4]]}')
    few = instance_decoder(signature(Tensor("x", "FP32", (-1, 2))), limit)
    with pytest.raises(PayloadTooLarge):
        few.at_once(b'{"instances":[[1,2],[3],[3,4]]}')
    with pytest.raises(Malformed):
        few(b'{"instances":[[1,2],[3],[3,4]')
    whole = instance_decoder(signature(Tensor("x", "FP32", (1,)), batched=False), RowLimit(1))
    with pytest.raises(InvalidTensor, match="one instance a request"):
        whole(b'{"instances":[[1],[1],[1]]}')


def test_a_fixed_size_is_held():
    with pytest.raises(InvalidTensor, match=r"must have shape \[2\], has \[3\]"):
        decode(signature(Tensor("x", "FP32", (-1, 2))), {"instances": [[1, 2, 3]]})


@pytest.mark.parametrize("body", [b"", b"{", b'{"instances": [[1, 2]]', b'\xff{"instances": []}'])
def test_what_is_not_json_is_malformed(body: bytes):
    with pytest.raises(Malformed):
        decode(signature(Tensor("x", "FP32", (-1, 2))), body)


def test_predictions_by_output():
    outputs = (Tensor("y", "FP32", (-1, 2)), Tensor("word", "BYTES", (-1,)))
    encode = prediction_encoder(signature(*PAIR, outputs=outputs))
    made = encode((np.array([[0.5, np.nan], [1, 2]], np.float32), np.array(["a", "b"], object)))
    assert json.loads(made) == [{"y": [0.5, None], "word": "a"}, {"y": [1.0, 2.0], "word": "b"}]


def test_one_prediction_of_a_model_that_does_not_batch():
    encode = prediction_encoder(signature(*PAIR, batched=False))
    assert json.loads(encode((np.array([[1, 2]], np.float32),))) == [{"y": [[1.0, 2.0]]}]


@pytest.mark.parametrize("kind", ["q", "Q", "l", "L", "i", "b", "?", "e", "f", "d"])
@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 0)])
@pytest.mark.parametrize("batched", [True, False])
def test_outputs_of_any_number_are_json(kind: str, shape: tuple[int, ...], batched: bool):  # noqa: FBT001 - a case
    """C's `long long` too, which ONNX Runtime's integers are, and which is not numpy's int64 here."""
    array = np.ones(shape, kind)
    given = signature(Tensor("x", "FP32", (-1,)), outputs=(Tensor("y", "INT64", (-1,) * len(shape)),), batched=batched)
    found = json.loads(prediction_encoder(given)((array,)))
    assert json.loads(v1_encoder(given)((array,))) == [row["y"] for row in found]
    assert found == ([{"y": row} for row in array.tolist()] if batched else [{"y": array.tolist()}])


def test_v1_names_outputs_where_there_are_several():
    outputs = (np.ones((1, 2), np.float32), np.zeros((1, 1), np.float32))
    given = signature(*PAIR, outputs=(*OUT, Tensor("z", "FP32", (-1, 1))))
    assert json.loads(v1_encoder(given)(outputs)) == [{"y": [1.0, 1.0], "z": [0.0]}]
