"""Parquet uploads keep their types and lose no digit."""

import datetime as dt
import decimal
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest


def parquet(**columns: pa.Array) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def test_types_are_kept(ingest: Callable[..., Any]):
    raw = parquet(
        i=pa.array([1, None, 3], pa.int8()),
        f=pa.array([1.5, float("nan"), float("inf")], pa.float32()),
        b=pa.array([True, False, None]),
        s=pa.array(["007", "", None]),
        d=pa.array(["x", "y", "x"]).dictionary_encode(),
        day=pa.array([dt.date(2024, 1, 31), None, None]),
        at=pa.array([dt.datetime(2024, 1, 31, 10, tzinfo=dt.UTC)] * 3),
        none=pa.nulls(3),
    )
    got = ingest(raw, "t.parquet")
    assert got.types() == {
        "i": "integer",
        "f": "number",
        "b": "boolean",
        "s": "category",
        "d": "category",
        "day": "datetime",
        "at": "datetime",
        "none": "category",
    }
    assert got.table["f"].to_list() == [1.5, None, None]
    assert got.table["s"].to_list() == ["007", None, None]
    assert got.table["at"][0] == dt.datetime(2024, 1, 31, 10)  # noqa: DTZ001 - stored as UTC without a zone
    assert got.warned("'f': 2 NaN or infinite values")


@pytest.mark.parametrize("zone", ["UTC", "Asia/Shanghai", "America/New_York", "+05:30"])
@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_times_with_a_zone_are_stored_in_utc(ingest: Callable[..., Any], zone: str, unit: str):
    at = [dt.datetime(2024, 1, 31, 10, tzinfo=dt.UTC), dt.datetime(1950, 7, 1, 3, 30, tzinfo=dt.UTC), None]
    times = pa.array(at, pa.timestamp(unit, zone))
    got = ingest(parquet(at=times, again=times.dictionary_encode()))
    for name in ("at", "again"):
        assert got.table[name].to_list() == [time and time.replace(tzinfo=None) for time in at]


def test_unsigned_integers(ingest: Callable[..., Any]):
    raw = parquet(small=pa.array([1, 2], pa.uint64()), big=pa.array([1, 2**64 - 1], pa.uint64()))
    got = ingest(raw)
    assert got.table["small"].to_list() == [1, 2]
    assert got.table["big"].to_list() == ["1", "18446744073709551615"]
    assert got.warned("'big' becomes text")


@pytest.mark.parametrize("kind", [pa.decimal128(20, 2), pa.decimal256(60, 2)])
def test_decimals_are_numbers(ingest: Callable[..., Any], kind: pa.DataType):
    exact = pa.array([decimal.Decimal("1.25"), None, decimal.Decimal("-12345678901.50")], kind)
    got = ingest(parquet(d=exact))
    assert got.types() == {"d": "number"}
    assert got.table["d"].to_list() == [1.25, None, -12345678901.5]


@pytest.mark.parametrize("column", [pa.array([[1], [2]]), pa.array([b"a", b"b"]), pa.array([{"x": 1}, {"x": 2}])])
def test_other_types_are_refused_by_name(refused: Callable[..., str], column: pa.Array):
    assert "column 'nested' has type" in refused(parquet(ok=pa.array([1, 2]), nested=column))


def test_empty_and_wide(refused: Callable[..., str]):
    assert "no data rows" in refused(parquet(a=pa.array([], pa.int64())))
    assert "3 columns; at most 2" in refused(parquet(a=pa.array([1]), b=pa.array([1]), c=pa.array([1])), columns=2)


def test_unpacked_size_is_limited(refused: Callable[..., str]):
    raw = parquet(a=pa.array(range(300_000)))
    assert "at most 1 are taken (AIMASS_LIMIT_UNPACKED_MB)" in refused(raw, unpacked_mb=1)


def test_text_that_is_not_utf8_is_refused(refused: Callable[..., str]):
    offsets = pa.py_buffer(np.array([0, 2, 4], np.int32).tobytes())
    bad = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"\xff\xfeok")])
    assert "Parquet file is damaged" in refused(parquet(x=bad))
