"""CSV and JSON Lines: dialects, headers, types, missing values and bad lines."""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest

from workers.context import Stopped
from workers.data.findings import Findings, limits_from
from workers.data.infer import parse_dates
from workers.data.profile import columns_of
from workers.data.sniff import sniff


def csv(header: str, *rows: str) -> bytes:
    return "\n".join([header, *rows, ""]).encode()


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (["1", "+2", "-3", "9223372036854775807"], "integer", [1, 2, -3, 9223372036854775807]),
        (["9007199254740993", "2"], "integer", [9007199254740993, 2]),
        (["1", "2.5", ".5", "5.", "1e3"], "number", [1.0, 2.5, 0.5, 5.0, 1000.0]),
        (["1", "9223372036854775808"], "category", ["1", "9223372036854775808"]),
        (["007", "12"], "category", ["007", "12"]),
        (["TRUE", "false"], "boolean", [True, False]),
        (["Yes", "No"], "category", ["Yes", "No"]),
        (["true", "maybe"], "category", ["true", "maybe"]),
        (["1", "NA", "?", "-", "NaN", "null", "None", "N/A", ""], "integer", [1, *[None] * 8]),
        (["a", "NA", "?"], "category", ["a", None, None]),
        (["true", "", "false"], "boolean", [True, None, False]),
        (["1_000", "2_000"], "category", ["1_000", "2_000"]),
        (["0x1F", "0x20"], "category", ["0x1F", "0x20"]),
        (["2024-02-30", "2024-01-01"], "category", ["2024-02-30", "2024-01-01"]),
    ],
)
def test_types(ingest: Callable[..., Any], values: list[str], kind: str, expected: list[object]):
    got = ingest(csv("x,row", *[f"{v},{i}" for i, v in enumerate(values)]))
    assert got.types()["x"] == kind
    assert got.table["x"].to_list() == expected
    assert got.column("x")["missing"] == expected.count(None)


def test_types_are_decided_over_the_whole_file_not_its_first_batch(
    ingest: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("workers.data.delimited.BATCH_CELLS", 100)
    rows = [f"{i},{i}" for i in range(1000)]
    got = ingest(csv("a,b", *rows, "x1,2.5"))
    assert got.types() == {"a": "integer", "b": "number"}
    assert got.warned("'a': 1 of 1001 values are not numbers and were set missing: 'x1'")
    assert got.table["a"].to_list() == [*range(1000), None]
    got = ingest(csv("a,b", *rows, *["word,1"] * 20))
    assert got.types()["a"] == "text"
    assert got.table["a"][999] == "999"


def test_row_groups_hold_at_most_50_000_rows(ingest: Callable[..., Any]):
    got = ingest(csv("a,b", *[f"{i},{i % 7}" for i in range(120_000)]))
    meta = pq.read_metadata(got.folder / "output" / "data.parquet")
    assert max(meta.row_group(i).num_rows for i in range(meta.num_row_groups)) <= 50_000
    assert meta.num_row_groups == 3
    assert got.table["a"].to_list() == list(range(120_000))


def test_dates_in_utc_where_a_zone_is_given():
    values = pl.Series(
        "d",
        [
            "2024-01-31",
            "2024-01-31 10:00",
            "2024-01-31T10:00:00.5",
            "2024-01-31T10:00:00+08:00",
            "2024-01-31T10:00Z",
            "2024-02-30",
        ],
    )
    assert parse_dates(values).dt.to_string("%Y-%m-%d %H:%M:%S%.3f").to_list() == [
        "2024-01-31 00:00:00.000",
        "2024-01-31 10:00:00.000",
        "2024-01-31 10:00:00.500",
        "2024-01-31 02:00:00.000",
        "2024-01-31 10:00:00.000",
        None,
    ]


def test_day_and_month_are_not_guessed(ingest: Callable[..., Any]):
    got = ingest(csv("d,y", "31/01/2024,1", "01/02/2024,0"))
    assert got.types()["d"] == "category"
    assert got.warned("write YYYY-MM-DD")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiters(ingest: Callable[..., Any], delimiter: str):
    got = ingest(delimiter.join("abc").encode() + b"\n" + delimiter.join("123").encode() + b"\n")
    assert got.table.drop("__row_id").rows() == [(1, 2, 3)]
    assert got.result.details["delimiter"] == delimiter


def test_a_comma_is_no_decimal_mark_in_a_comma_separated_file(ingest: Callable[..., Any]):
    got = ingest(csv("a,b", '"1,234",1', '"2,500",2'))
    assert got.table["a"].to_list() == ["1,234", "2,500"]
    assert got.warned("commas may be decimal marks")


def test_quotes_in_tab_separated_text_are_text(ingest: Callable[..., Any]):
    got = ingest(b'text\tlabel\n" to be or not\t1\nthe "end\t0\n')
    assert got.table["text"].to_list() == ['" to be or not', 'the "end']
    assert got.warned("quote characters are read as text")


def test_single_column(ingest: Callable[..., Any]):
    assert ingest(b"x\n1\n2\n").table["x"].to_list() == [1, 2]


def test_first_line_that_looks_like_data_is_kept(ingest: Callable[..., Any]):
    got = ingest(b"39, State-gov, <=50K\n50, Private, >50K\n")
    assert got.table.drop("__row_id").rows() == [(39, "State-gov", "<=50K"), (50, "Private", ">50K")]
    assert got.result.details["header"] is False
    got = ingest(b"yes,no\nno,yes\nyes,yes\n")
    assert got.result.rows == 3


def test_quoted_line_ends_do_not_shift_line_numbers(ingest: Callable[..., Any]):
    got = ingest(b'a,b\n1,"x\ny\nz"\n2\n3,w\n4,"p"q\n5,v\n')
    assert [(r.line, r.reason[:14]) for r in got.result.rejected_first] == [
        (5, "1 cells instea"),
        (7, "broken quoting"),
    ]
    assert got.table["a"].to_list() == [1, 3, 5]


def test_an_unclosed_quote_that_meets_another_is_reported_with_its_span(ingest: Callable[..., Any]):
    got = ingest(csv("a,b", "1,x", '2,"open', "3,y", '4,z",9', "5,x", "6,x"))
    assert got.result.rejected_first[0].line == 3
    assert "the record spans lines 3 to 5" in got.result.rejected_first[0].reason


def test_a_name_cannot_take_that_of_the_row_id(ingest: Callable[..., Any]):
    got = ingest(csv("__row_id,a,a,a_2,", "9,1,2,3,4"))
    assert [c.name for c in got.result.columns] == ["__row_id_2", "a", "a_3", "a_2", "column_5"]


def test_mostly_ragged_lines_are_refused(refused: Callable[..., str]):
    assert "3 of 4 lines cannot be read" in refused(csv("a,b", "1,2", "x", "x,y,z", "w,x,y,z"))


def test_long_lines_are_refused_without_being_held(refused: Callable[..., str]):
    assert "line 2 has over 1,048,576 characters" in refused(b"a,b\n1," + b"x" * (2 << 20), line_mb=1)
    assert "line 1 has over 1,048,576" in refused(b"1," * (1 << 20), line_mb=1)


def test_column_limit(refused: Callable[..., str]):
    assert "4 columns; at most 3" in refused(b"a,b,c,d\n1,2,3,4\n", columns=3)


def test_only_bad_lines_name_the_first(refused: Callable[..., str]):
    assert "line 2" in refused(b"a,b\n1\n")


@pytest.mark.parametrize(
    ("raw", "encoding", "text"),
    [
        ("ville,n\nOrléans,1\nBesançon,2\nété à,3\n".encode("latin-1"), "cp1252", "Orléans"),
        ("имя,город\nИван,Москва\nПётр,Казань\nМария,Самара\n".encode("cp1251"), "cp1251", "Иван"),  # noqa: RUF001 - Russian
        ("名称,价格\n苹果,1\n香蕉,2\n".encode("gb18030"), "gb18030", "苹果"),
        ("ville,n\nOrléans,1\n".encode("utf-16"), "utf-16", "Orléans"),
        ("ville,n\nOrléans,1\n".encode("utf-16-le"), "utf-16-le", "Orléans"),
        ("ville,n\nOrléans,1\n".encode("utf-8-sig"), "utf-8-sig", "Orléans"),
    ],
)
def test_encodings(ingest: Callable[..., Any], raw: bytes, encoding: str, text: str):
    got = ingest(raw)
    assert got.result.details["encoding"] == encoding
    assert got.table[:, 1][0] == text


def test_profile_of_numbers(ingest: Callable[..., Any]):
    got = ingest(csv("x,c", *[f"{i},k" for i in range(1, 101)]))
    entry = got.column("x")
    assert (entry["min"], entry["max"], entry["mean"], entry["unique"]) == (1, 100, 50.5, 100)
    assert entry["std"] == pytest.approx(29.011491975882016)
    assert entry["quantiles"] == [1.0, 25.75, 50.5, 75.25, 100.0]
    assert entry["histogram"]["counts"] == [5] * 20
    assert len(entry["histogram"]["edges"]) == 21
    assert got.column("c")["top"] == [{"value": "k", "count": 100}]
    assert got.warned("constant: 'c'")
    assert columns_of(got.profile["columns"]) == got.result.columns


def test_profile_of_extreme_numbers_is_finite(ingest: Callable[..., Any]):
    entry = ingest(csv("x,y", "1.7e308,1", "-1.7e308,2", "1.7e308,3")).column("x")
    assert (entry["min"], entry["max"], entry["histogram"]) == (-1.7e308, 1.7e308, None)
    got = ingest(csv("x,y", *["1e300,1e300"] * 5, "1e300,1.0000000000000002e300"))
    assert got.column("x")["histogram"] == {"edges": [1e300, 1e300], "counts": [6]}
    assert got.column("y")["histogram"] is None


def test_profile_of_text(ingest: Callable[..., Any]):
    entry = ingest(csv("t,y", *[f"review number {i},{i % 2}" for i in range(100)])).column("t")
    assert entry["type"] == "text"
    assert entry["length"] == {"min": 15, "mean": 15.9, "max": 16}


def test_equal_and_renamed_columns_and_repeated_rows_are_pointed_out(ingest: Callable[..., Any]):
    rows = [f"{i % 3},{'abc'[i % 3]},{i * 7 % 5},{i * 7 % 5}" for i in range(60)]
    got = ingest(csv("n,word,p,q", *rows))
    assert got.warned("'n', 'word' say the same")
    assert got.warned("'p', 'q' say the same")
    assert not got.warned("'n', 'word', 'p'")
    assert got.result.details["duplicate_rows"] == 45


def test_json_lines(ingest: Callable[..., Any]):
    raw = b'{"id": 9007199254740993, "x": 1.5, "ok": true, "t": "a"}\n\n{"id": 2, "x": null, "ok": false, "new": "b"}\n'
    got = ingest(raw, "rows.jsonl")
    assert got.table.drop("__row_id").rows() == [(9007199254740993, 1.5, True, "a", None), (2, None, False, None, "b")]
    assert got.types() == {"id": "integer", "x": "number", "ok": "boolean", "t": "category", "new": "category"}


def test_json_keys_that_come_late_are_missing_before(ingest: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("workers.data.jsonl.BATCH_CELLS", 2)
    raw = b"".join(b'{"a": %d}\n' % i for i in range(5)) + b'{"a": 5, "b": 7}\n'
    got = ingest(raw, "rows.jsonl")
    assert got.table["b"].to_list() == [None, None, None, None, None, 7]
    assert got.column("b")["missing"] == 5


def test_deep_json_line_is_rejected_not_fatal(ingest: Callable[..., Any]):
    raw = b'{"a": 1}\n{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
    got = ingest(raw, "rows.jsonl")
    assert (got.result.rows, got.lines()) == (1, [2])


def test_gzip_and_archives_of_one_table(ingest: Callable[..., Any]):
    plain = csv("a,b", "1,x", "2,y")
    assert ingest(gzip.compress(plain)).result.rows == 2
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("data/table.csv.gz", gzip.compress(plain))
        archive.writestr("data/README.md", "about")
        archive.writestr("__MACOSX/data/._table.csv", "litter")
    got = ingest(packed.getvalue(), "t.zip")
    assert got.result.rows == 2
    assert got.warned("read 'data/table.csv.gz' from the archive; left out: 'data/README.md'")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        info = tarfile.TarInfo("table.data")
        info.size = len(plain)
        tar.addfile(info, io.BytesIO(plain))
    assert ingest(packed.getvalue(), "t.tgz").result.rows == 2


def test_several_tables_are_refused_by_name(refused: Callable[..., str]):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("train.csv", "a\n1\n")
        archive.writestr("test.csv", "a\n1\n")
    assert "2 tables ('train.csv', 'test.csv')" in refused(packed.getvalue(), "t.zip")


def test_gzip_twice_and_limits(refused: Callable[..., str]):
    assert "gzipped twice" in refused(gzip.compress(gzip.compress(b"a\n1\n")))
    assert "over 1 MiB" in refused(gzip.compress(b"a,b\n" + bytes(range(32, 127)) * 20_000), unpacked_mb=1)


def test_progress_never_falls_and_stop_is_obeyed(ingest: Callable[..., Any]):
    events = ingest(csv("a,b", *[f"{i},{i}" for i in range(300_000)])).events
    fractions = [e["fraction"] for e in events if e["event"] == "progress"]
    assert fractions == sorted(fractions)
    assert len(fractions) > 3
    with pytest.raises(Stopped):
        ingest(csv("a,b", "1,2"), stop=True)


def test_format_asked_for_must_fit(refused: Callable[..., str]):
    assert "pictures were announced" in refused(b"a,b\n1,2\n", format="image")


def test_environment_is_not_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AIMASS_LIMIT_COLUMNS", "7")
    assert limits_from({}).columns == 10_000
    assert limits_from({"columns": 5}).columns == 5


def test_findings_are_bounded():
    findings = Findings()
    for i in range(500):
        findings.warn("w" * 5000)
        findings.reject("r" * 5000, line=i, path="p" * 5000)
    assert findings.rejected_count == 500
    assert len(findings.rejected_first) == 20
    assert len(findings.rejected_first[0].reason) == 300
    assert findings.warnings[-1] == "and 300 more warnings"


def test_name_is_only_a_hint(tmp_path: Path):
    path = tmp_path / "original"
    path.write_bytes(b"PAR1\x15\x04 and more")
    assert sniff(path, "table.csv") == "parquet"
    for text in (b"PAR1,b\n1,2\n", b"ID3,x\n1,2\n", b"a,b,c,d,WAVE\n", b'abcd,ef,{"a"\n', b"BM,b\n1,2\n"):
        path.write_bytes(text)
        assert sniff(path, "table.parquet") == "delimited"


def test_names_that_are_patterns_elsewhere(ingest: Callable[..., Any]):
    got = ingest(csv("*,^.*$,a b,^b$", *[f"{i},{i % 2},x,{i}.5" for i in range(30)]))
    assert got.types() == {"*": "integer", "^.*$": "integer", "a b": "category", "^b$": "number"}
    assert got.column("^.*$")["max"] == 1
    lines = "".join(f'{{"^b$": "w{i % 2}", "*": true, "^d$": "2024-01-0{i % 9 + 1}"}}\n' for i in range(30))
    assert ingest(lines.encode(), "a.jsonl").types() == {"^b$": "category", "*": "boolean", "^d$": "datetime"}
    file = io.BytesIO()
    pl.DataFrame({"^b$": [1.5, float("nan")], "^c$": ["x", "y"]}).write_parquet(file)
    assert ingest(file.getvalue(), "a.parquet").table["^b$"].to_list() == [1.5, None]


def test_a_damaged_header_is_no_header(refused: Callable[..., str]):
    rows = "".join(f"café {i},x\n" for i in range(9)).encode()
    assert "line 1: the header holds bytes that are not UTF-8" in refused(b"caf\xe9,b\n" + rows)
    assert "line 1: the header's quoting is broken" in refused(b'"a"x,b\n1,2\n3,4\n')


def test_long_cells_are_no_obstacle_to_the_sniffer(ingest: Callable[..., Any]):
    got = ingest(csv("a,b", "1," + "word " * 60_000, "2,short"))
    assert got.table["a"].to_list() == [1, 2]
    assert got.table["b"].str.len_chars()[0] == 299_999


def test_large_tables_are_profiled_by_estimate_and_sample(ingest: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("workers.data.profile._EXACT_ROWS", 100)
    monkeypatch.setattr("workers.data.profile._SAMPLE_ROWS", 100)
    got = ingest(csv("id,c", *[f"{i},{'ab'[i % 2]}" for i in range(1000)]))
    entry = got.column("id")
    assert entry["unique_is_estimate"] is True
    assert 900 <= entry["unique"] <= 1000
    assert (entry["min"], entry["max"], entry["mean"]) == (0, 999, 499.5)
    assert sum(entry["histogram"]["counts"]) == 100
    assert entry["quantiles"] == [0.0, 247.5, 495.0, 742.5, 990.0]
    assert not got.warned("as an id is")
