"""Excel workbooks (xlsx): the first sheet as columns of text, whose types are inferred as those of a CSV are."""

from collections.abc import Iterator
from pathlib import Path

import fastexcel
import polars as pl

from app.settings import LimitSettings
from workers.data.delimited import unique_names
from workers.data.findings import Findings, Tick, listed, shorten, unreadable
from workers.data.typed import check_columns

MEMBER = "xl/workbook.xml"  # of the zip archive that a workbook is
_BATCH_ROWS = 20_000
_PLAIN = r"^-?(?:0|[1-9][0-9]*)(?:\.[0-9]{1,9})?$"
_ROUNDED = 1e-9


def read_excel(path: Path, findings: Findings, limits: LimitSettings, tick: Tick) -> Iterator[pl.DataFrame]:
    """Batches of string columns; the first row has the names. A formula counts as the value that was saved with it.

    InvalidData: damaged, encrypted, no data rows, or too many columns.
    """
    try:
        book = fastexcel.read_excel(path)
        first, *others = book.sheet_names
        frame = _exact(book, first, book.load_sheet(first, dtypes="string").to_polars())
    except (fastexcel.FastExcelError, ValueError) as error:
        why = shorten(str(error), 200)
        raise unreadable(f"the Excel workbook cannot be read: {why}; save the sheet as CSV") from None
    findings.warn(f"read the sheet '{shorten(first)}'" + (f"; left out: {listed(others)}" if others else ""))
    check_columns(frame.width, limits)
    frame = frame.filter(~pl.all_horizontal(pl.all().is_null()))
    if not len(frame) or not frame.width:
        raise unreadable("the sheet has no data rows; upload one with a header row and data")
    frame.columns = unique_names(frame.columns, findings)
    for start in range(0, len(frame), _BATCH_ROWS):
        yield frame.slice(start, _BATCH_ROWS)
        tick(min(1.0, (start + _BATCH_ROWS) / len(frame)), f"{start:,} rows read")


def _exact(book: fastexcel.ExcelReader, sheet: str, texts: pl.DataFrame) -> pl.DataFrame:
    """With numbers as they are saved: the reader's text of one has nine decimals, of which a small one has none."""
    numbers = book.load_sheet(sheet, dtypes="float").to_polars()
    columns = []
    for text, number in zip(texts, numbers, strict=True):
        rounded = text.set(~text.str.contains(_PLAIN), None).cast(pl.Float64)  # a text such as 007 is none
        found = ((rounded - number).abs() <= _ROUNDED) & (rounded != number)
        columns.append(number.cast(pl.String).zip_with(found.fill_null(value=False), text))
    return pl.DataFrame([column.alias(name) for column, name in zip(columns, texts.columns, strict=True)])
