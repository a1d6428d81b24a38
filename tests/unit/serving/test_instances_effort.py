"""What bodies of instances cost: refusals end at what they tell, and the event loop decodes what is surely quick."""

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from app.core.errors import InvalidTensor, PayloadTooLarge
from app.core.signature import Column, ImageFormat, Signature, Tensor
from app.serving import careful, instances
from app.serving.instances import InstanceDecoder, instance_decoder
from app.serving.row_limit import RowLimit


def table(width: int, kind: Any = "number", limit: RowLimit | None = None) -> InstanceDecoder:
    """A model of columns c0, c1, …"""
    datatype: Any = "FP32" if kind == "number" else "BYTES"
    columns = tuple(Column(f"c{at}", kind, "x", at) for at in range(width))
    tensors = (Tensor("x", datatype, (-1, width)),), (Tensor("value", "FP32", (-1,)),)
    return instance_decoder(Signature("regression", *tensors, columns), limit)


def body(*rows: Any) -> bytes:
    return json.dumps({"instances": rows}, separators=(",", ":")).encode()


class Row(dict[str, Any]):
    """An instance that counts the columns that are looked for."""

    looks = 0

    def __contains__(self, name: object) -> bool:
        Row.looks += 1
        return super().__contains__(name)


class Rows(list[Any]):
    """Instances that count how many of them are taken."""

    taken = 0

    def __iter__(self) -> Iterator[Any]:
        for row in super().__iter__():
            self.taken += 1
            yield row


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The instances that the careful reading will be given, whatever the body says."""

    def given(rows: Rows) -> Rows:
        monkeypatch.setattr(Row, "looks", 0)
        monkeypatch.setattr(careful, "json", SimpleNamespace(loads=lambda _: {"instances": rows}))
        return rows

    return given


@pytest.mark.parametrize(
    ("width", "row", "rows", "looks"),
    [
        (13, {}, 8, 100),
        (2000, {}, 1, 100),
        (4, {f"c{at}": "x" for at in range(4)}, 25, 100),
        (2, {f"d{at}": 1 for at in range(150)}, 1, 0),  # unknown columns
        (2, 5, 100, 0),
    ],
)
def test_a_refusal_ends_with_the_last_error_that_it_tells(read: Any, width: int, row: Any, rows: int, looks: int):
    given = read(Rows([Row(row) if isinstance(row, dict) else row] * 5000))
    with pytest.raises(InvalidTensor, match="and at least 99 more") as refused:
        table(width)(b"{")
    assert (len(refused.value.errors), given.taken, Row.looks) == (100, rows, looks)


def test_a_refusal_of_pictures_ends_with_the_last_error_that_it_tells(read: Any):
    picture = Tensor("image", "UINT8", (-1, 1, 2, 3)), Tensor("value", "FP32", (-1,))
    format_ = ImageFormat("L", 2, 3)
    signature = Signature("regression", (picture[0],), (picture[1],), (Column("p", "image", "image"),), image=format_)
    given = read(Rows(["no base64!"] * 5000))
    with pytest.raises(InvalidTensor, match="and at least 99 more"):
        instance_decoder(signature)(b"{")
    assert given.taken == 100
    limit = RowLimit(4999)
    given = read(Rows(["no base64!"] * 5000))
    for sent in (b"{", body(*given)):  # the second by the fast way
        with pytest.raises(PayloadTooLarge):
            instance_decoder(signature, limit)(sent)
    assert (given.taken, limit.rejected) == (5000, {"too_large": 2})  # taken for the body alone


def test_a_refusal_holds_no_tensor_that_nobody_pays_for(monkeypatch: pytest.MonkeyPatch):
    made: list[Any] = []
    monkeypatch.setattr(careful, "np", SimpleNamespace(empty=made.append, array=made.append))
    with pytest.raises(InvalidTensor):
        table(2000)(body(*[{}] * 5000))
    assert not made


def test_fewer_errors_are_counted_exactly():
    with pytest.raises(InvalidTensor, match=r"\(and 98 more\)") as refused:
        table(1)(body(*[{}] * 99))
    assert len(refused.value.errors) == 99


@pytest.mark.parametrize("row", [{"c0": 1, "c1": 2}, {}, {"c0": 1, "c1": "x"}])
def test_more_rows_than_the_endpoint_queues_are_not_looked_at(read: Any, row: dict[str, Any]):
    limit = RowLimit(10)
    decode = table(2, limit=limit)
    with pytest.raises(PayloadTooLarge, match="11 rows are more than the endpoint queues"):
        decode(body(*[row] * 11))
    given = read(Rows([Row(row)] * 11))
    with pytest.raises(PayloadTooLarge):
        decode(b"{")
    assert (given.taken, limit.rejected) == (0, {"too_large": 2})


@pytest.mark.parametrize(
    ("width", "row", "rows", "here"),
    [
        (13, {f"c{at}": 1.5 for at in range(13)}, 1, True),
        (13, {f"c{at}": 1.5 for at in range(13)}, 300, True),
        (13, {f"c{at}": 1.5 for at in range(13)}, 400, False),
        (1, {"c0": 1}, 4000, True),
        (1, {"c0": 1}, 5000, False),
        (2000, {f"c{at}": 1 for at in range(2000)}, 1, True),
        (2000, {f"c{at}": 1 for at in range(2000)}, 2, False),
    ],
)
def test_the_event_loop_decodes_few_values(width: int, row: Any, rows: int, *, here: bool):
    decode, raw = table(width), body(*[row] * rows)
    assert len(raw) <= decode.inline_bytes
    found = decode.at_once(raw)
    assert (found is not None) is here
    if found is not None:
        (x,), count = decode(raw)
        assert found[1] == count == rows
        np.testing.assert_array_equal(found[0][0], x)


@pytest.mark.parametrize(("rows", "here"), [(2000, True), (2100, False)])
def test_texts_count_twice(rows: int, *, here: bool):
    assert (table(1, "category").at_once(body(*[{"c0": "a"}] * rows)) is not None) is here


@pytest.mark.parametrize(("width", "rows"), [(13, 85_000), (2000, 5000), (13, 2000)])
def test_the_event_loop_refuses_small_bodies_alone(width: int, rows: int):
    decode = table(width)
    assert len(body(*[{}] * rows)) <= decode.inline_bytes
    assert decode.at_once(body(*[{}] * rows)) is None  # a thread says what is wrong
    with pytest.raises(InvalidTensor):
        decode.at_once(body(*[{}] * 1000))


def test_what_only_the_careful_way_takes_is_left_to_a_thread_where_it_is_long():
    columns = (Column("n", "integer", "x", 0),)
    tensors = (Tensor("x", "FP32", (-1, 1)),), (Tensor("value", "FP32", (-1,)),)
    decode = instance_decoder(Signature("regression", *tensors, columns))
    few, many = body(*[{"n": 3.0}] * 100), body(*[{"n": 3.0}] * 1000)
    found = decode.at_once(few)
    assert found is not None
    assert found[0][0].tolist() == [[3.0]] * 100
    assert decode.at_once(many) is None
    assert decode(many)[1] == 1000


@pytest.fixture
def wide() -> InstanceDecoder:
    return table(instances._WIDE)


def test_the_rows_of_wide_tables_are_decoded_one_by_one(wide: Any, monkeypatch: pytest.MonkeyPatch):
    names = [f"c{at}" for at in range(instances._WIDE)]
    rows = [{name: at * row for at, name in enumerate(names)} for row in range(3)]
    decoded: list[bytes] = []
    one = wide._decode_row
    monkeypatch.setattr(wide, "_decode_row", lambda row: decoded.append(bytes(row)) or one(row))
    (x,), count = wide(body(rows[0], dict(reversed(rows[1].items())), rows[2]))
    assert (count, len(decoded)) == (3, 3)
    np.testing.assert_array_equal(x, np.outer(np.arange(3), np.arange(instances._WIDE)).astype(np.float32))
    with pytest.raises(InvalidTensor) as refused:
        wide(body(rows[0], rows[1] | {"c7": "x"}))
    assert refused.value.errors[0].loc == ("instances", 1, "c7")
    with pytest.raises(InvalidTensor) as refused:
        wide(b'{"instances":[]}')
    assert refused.value.errors[0].loc == ("instances",)


def test_a_row_of_repeated_names_is_not_looked_through_for_each(wide: Any, monkeypatch: pytest.MonkeyPatch):
    names = [f'"c{at}":1' for at in range(instances._WIDE)]
    raw = '{"instances":[{' + ",".join(names + ['"c0":2'] * (2 * instances._WIDE)) + "}]}"
    monkeypatch.setattr(wide, "_decode_row", None)
    (x,), _ = wide(raw.encode())
    assert x[0, :2].tolist() == [2, 1]  # the last counts


def test_wide_tables_of_too_many_rows_are_not_decoded(monkeypatch: pytest.MonkeyPatch):
    decode: Any = table(instances._WIDE, limit=RowLimit(10))
    monkeypatch.setattr(decode, "_decode_row", None)
    with pytest.raises(PayloadTooLarge):
        decode(body(*[{f"c{at}": 1 for at in range(instances._WIDE)}] * 11))
