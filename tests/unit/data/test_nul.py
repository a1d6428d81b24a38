"""NUL characters, which neither a column's name nor PostgreSQL's JSON can hold."""

import io
from collections.abc import Callable
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq


def test_in_parquet(ingest: Callable[..., Any]):
    file = io.BytesIO()
    pq.write_table(pa.table({"a\0b": [1, 2], "ab": [3, 4], "c": ["x\0y", "z"]}), file)
    got = ingest(file.getvalue(), "a.parquet")
    assert got.table.drop("__row_id").to_dict(as_series=False) == {"ab": [1, 2], "ab_2": [3, 4], "c": ["xy", "z"]}
    assert got.warned("the name of column 1 held NUL characters, which were taken out")
    assert got.warned("column 'c': 1 values held NUL characters, which were taken out")


def test_in_json_lines(ingest: Callable[..., Any]):
    got = ingest(b'{"a": 1}\n{"a\\u0000": 2}\n{"a": "x\\u0000"}\n{"a": 4}\n', "a.jsonl")
    assert got.table["a"].to_list() == [1, 4]
    assert got.lines() == [2, 3]
    assert got.result.rejected_first[0].reason == "a NUL character, which is no text; leave it out"


def test_in_a_header(ingest: Callable[..., Any]):
    got = ingest(b"a\x00b,c\n1,2\n3,4\n", "a.csv")
    assert got.types() == {"ab": "integer", "c": "integer"}


def test_reports_hold_none(ingest: Callable[..., Any]):
    frame = pl.DataFrame({"a": ["1"] * 60 + ["b\0"]})
    file = io.BytesIO()
    frame.write_parquet(file)
    got = ingest(file.getvalue(), "a.parquet")
    assert "\0" not in str(got.profile)
