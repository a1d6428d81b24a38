"""Excel workbooks, written by a library that is not the reader's."""

import datetime as dt
import io
import zipfile
from collections.abc import Callable
from typing import Any

import xlsxwriter

ROWS: list[list[Any]] = [
    ["name", "age", "joined", "member", "share"],
    ["Ann", 31, dt.datetime(2024, 1, 31), True, 0.25],  # noqa: DTZ001 - cells have no zone
    ["Bob", None, dt.datetime(2024, 2, 29), False, 1.5],  # noqa: DTZ001 - as above
    ["", 47, None, True, 2],
]


def workbook(rows: list[list[Any]], *more: str) -> bytes:
    buffer = io.BytesIO()
    with xlsxwriter.Workbook(buffer, {"in_memory": True, "default_date_format": "yyyy-mm-dd"}) as book:
        sheet = book.add_worksheet("people")
        for index, row in enumerate(rows):
            sheet.write_row(index, 0, row)
        for name in more:
            book.add_worksheet(name)
    return buffer.getvalue()


def test_the_first_sheet_becomes_a_table(ingest: Callable[..., Any]):
    got = ingest(workbook(ROWS, "notes"), "people.xlsx")
    assert got.types() == {
        "name": "category", "age": "integer", "joined": "datetime", "member": "boolean", "share": "number",
    }  # fmt: skip
    assert got.table["age"].to_list() == [31, None, 47]
    assert got.table["joined"].to_list()[1] == dt.datetime(2024, 2, 29)  # noqa: DTZ001 - as above
    assert got.table["share"].to_list() == [0.25, 1.5, 2.0]
    assert got.warned("read the sheet 'people'; left out: 'notes'")


def test_rows_that_are_empty_are_left_out_and_names_are_made_unique(ingest: Callable[..., Any]):
    got = ingest(workbook([["a", "a", "b"], [1, 2, 3], [None, None, None], [4, 5, 6]]))
    assert len(got.table) == 2
    assert len(set(got.types())) == 3


def test_numbers_keep_their_digits_and_texts_of_digits_stay_as_they_are(ingest: Callable[..., Any]):
    """A concentration of 1e-11 is not 0. Ten decimals are more than the reader's own text of a number has."""
    small = [float(f"{i * 1.23e-11:.16G}") for i in range(1, 41)]  # as they are in the file
    rows = [["small", "third", "whole", "either", "code", "written"]]
    rows += [[x, i / 3, i, i / 7 if i % 2 else "none yet", "007", "0.5"] for i, x in enumerate(small, 1)]
    got = ingest(workbook(rows))
    assert got.table["small"].to_list() == small
    assert got.table["third"].to_list() == [float(f"{i / 3:.16G}") for i in range(1, 41)]
    assert (got.types()["whole"], got.table["whole"].to_list()) == ("integer", list(range(1, 41)))
    assert [float(x) for x in got.table["either"].to_list()[::2]] == [float(f"{i / 7:.16G}") for i in range(1, 41, 2)]
    assert got.table["code"].unique().to_list() == ["007"]
    assert got.table["written"].unique().to_list() == [0.5]


def test_what_is_no_workbook_is_refused(refused: Callable[..., str]):
    whole = workbook(ROWS)
    assert "no data rows" in refused(workbook(ROWS[:1]))
    parts = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(parts, "w") as new:
        for name in old.namelist():
            new.writestr(name, b"<broken" if name.endswith("sheet1.xml") else old.read(name))
    assert "the Excel workbook cannot be read" in refused(parts.getvalue())
    document = io.BytesIO()
    with zipfile.ZipFile(document, "w") as new:
        new.writestr("[Content_Types].xml", "<Types/>")
        new.writestr("word/document.xml", "<w/>")
    assert "no Excel workbook" in refused(document.getvalue())


def test_a_bomb_is_refused(refused: Callable[..., str]):
    bomb = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(workbook(ROWS))) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        new.writestr("xl/media/zeros.bin", bytes(50 << 20))
    assert "decompression bomb" in refused(bomb.getvalue())
