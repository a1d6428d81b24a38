"""Arrow IPC uploads, as files and as streams."""

import datetime as dt
import io
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

TABLE = pa.table(
    {
        "i": pa.array([1, None, 3], pa.int16()),
        "f": pa.array([1.5, float("nan"), 2.0]),
        "big": pa.array([1, 2**64 - 1, 2], pa.uint64()),
        "s": pa.array([" 007", " ", None]).dictionary_encode(),
        "coded": pa.array([1, 2**64 - 1, 2], pa.uint64()).dictionary_encode(),
        "at": pa.array([dt.datetime(2024, 1, 31, 10, tzinfo=dt.UTC)] * 3),
    }
)


def arrow(table: pa.Table, *, stream: bool = False, compression: str | None = None, rows: int = 2) -> bytes:
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=rows)
    return sink.getvalue()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_types_are_kept(ingest: Callable[..., Any], *, stream: bool, compression: str | None):
    got = ingest(arrow(TABLE, stream=stream, compression=compression), "t.arrow")
    assert got.types() == {
        "i": "integer", "f": "number", "big": "category", "s": "category", "coded": "category", "at": "datetime",
    }  # fmt: skip
    assert got.table["i"].to_list() == [1, None, 3]
    assert got.table["f"].to_list() == [1.5, None, 2.0]
    assert got.table["big"].to_list() == ["1", "18446744073709551615", "2"]
    assert got.table["coded"].to_list() == got.table["big"].to_list()
    assert got.table["s"].to_list() == ["007", None, None]  # of " 007" and blanks, as in every other file
    assert got.warned("'big' becomes text")
    assert got.warned("'f': 1 NaN or infinite values")


@pytest.mark.parametrize("stream", [False, True])
def test_damage_is_told(refused: Callable[..., str], *, stream: bool):
    whole = arrow(TABLE, stream=stream)
    for end in (len(whole) // 2, len(whole) // 3):
        assert "Arrow file is damaged" in refused(whole[:end])
    words = refused(arrow(pa.table({"ok": [1], "nested": [[1]]}), stream=stream))
    assert "column 'nested' has type list" in words
    assert "no data rows" in refused(arrow(TABLE.slice(0, 0), stream=stream))


def test_text_that_is_not_utf8_is_told(refused: Callable[..., str]):
    raw = arrow(pa.table({"s": ["abcd", "efgh"]}))
    assert "Arrow file is damaged" in refused(raw.replace(b"abcdefgh", b"ab\xff\xfeefgh"))


def test_what_unpacks_to_too_much_is_refused(refused: Callable[..., str]):
    zeros = arrow(pa.table({"x": pa.array([0] * 300_000, pa.int64())}), compression="zstd", rows=100_000)
    assert len(zeros) < 1 << 20
    assert "AIMASS_LIMIT_UNPACKED_MB" in refused(zeros, unpacked_mb=1)
