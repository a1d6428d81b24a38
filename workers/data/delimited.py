"""CSV and its relatives: the dialect from a sample, then every record with its line number, as columns of strings."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import polars as pl

from app.settings import LimitSettings
from app.specs.data import ROW_ID
from workers.data.encoding import Lines, detect_encoding
from workers.data.findings import Findings, Tick, listed, shorten, unreadable

if TYPE_CHECKING:
    import _csv

_SAMPLE_CHARS = 1 << 20
_SAMPLE_RECORDS = 500
# In this order at equal fit: a comma may stand inside numbers and text of the others, seldom the other way round.
_DELIMITERS = ("\t", ";", "|", ",")
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d+)*|\.\d+)([eE][+-]?\d+)?$")
_MAX_NAME = 1000
BATCH_CELLS = 200_000  # of Python strings at a time: larger batches fall out of the processor's cache
BATCH_CHARS = 8 << 20


@dataclass(frozen=True, slots=True)
class Dialect:
    """How the cells of a text table are written."""

    delimiter: str
    quoted: bool
    header: bool
    width: int


def read_delimited(path: Path, findings: Findings, limits: LimitSettings, tick: Tick) -> Iterator[pl.DataFrame]:
    """Batches of string columns under their final names. Rejected records go to `findings`.

    InvalidData: no data rows, too many columns, an unclosed quote, a line over the limit, or mostly ragged records.
    """
    csv.field_size_limit(limits.line_mb << 20)
    encoding = detect_encoding(path, findings)
    lines = Lines(path, encoding, limits.line_mb << 20)
    dialect = sniff_dialect(_sample(lines), findings)
    if dialect.width > limits.columns:
        raise unreadable(
            f"the table has {dialect.width:,} columns; at most {limits.columns:,} are taken (AIMASS_LIMIT_COLUMNS)"
        )
    findings.details |= {"encoding": encoding.codec, "delimiter": dialect.delimiter, "header": dialect.header}
    lines = Lines(path, encoding, limits.line_mb << 20)
    records = read_records(lines, dialect, findings)
    names = _names(dialect, records, findings)
    yield from _batches(records, names, lines, path, findings, tick)
    if lines.nul_lines:
        findings.warn(f"{lines.nul_lines} lines held NUL characters, which were taken out of their cells")


def _sample(lines: Lines) -> str:
    """The first lines, whole, up to _SAMPLE_CHARS."""
    taken: list[str] = []
    for line in lines:
        if lines.chars > _SAMPLE_CHARS and taken:
            break
        taken.append(line.encode(errors="replace").decode())
    return "".join(taken)


def sniff_dialect(sample: str, findings: Findings) -> Dialect:
    """The dialect under which most records of `sample` have the same number of cells."""
    best: tuple[float, str, bool, list[list[str]], int] | None = None
    for delimiter in _DELIMITERS:
        for quoted in (True, False) if delimiter == "\t" else (True,):
            records = _parse(sample, delimiter, quoted=quoted)
            widths = Counter(len(r) for r in records)
            width, count = max(widths.items(), key=lambda item: (item[1], item[0]), default=(1, 0))
            fit = count / len(records) if width > 1 else 0.0
            if best is None or fit > best[0]:
                best = (fit, delimiter, quoted, records, width)
    assert best is not None  # noqa: S101 - there are delimiters
    fit, delimiter, quoted, records, width = best
    if fit == 0.0:
        delimiter, quoted, width = ",", True, 1
        records = _parse(sample, delimiter, quoted=True)
    if not quoted:
        findings.warn("quote characters are read as text: in this tab-separated file they do not enclose cells")
    return Dialect(delimiter, quoted, _has_header([r for r in records if len(r) == width], records), width)


def _parse(sample: str, delimiter: str, *, quoted: bool) -> list[list[str]]:
    """Records of the sample up to the first one that breaks the quoting; blank lines left out."""
    reader = _reader(iter(io.StringIO(sample, newline="")), delimiter, quoted=quoted)
    records: list[list[str]] = []
    try:
        records.extend(row for row in islice(reader, _SAMPLE_RECORDS) if not _blank(row))
    except csv.Error:
        return records if quoted and delimiter != "\t" else []
    return records


def _reader(lines: Iterator[str], delimiter: str, *, quoted: bool) -> "_csv.Reader":
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    return csv.reader(lines, delimiter=delimiter, quoting=quoting, skipinitialspace=delimiter != "\t", strict=True)


def _blank(row: list[str]) -> bool:
    return not row or (len(row) == 1 and not row[0].strip())


def _has_header(rows: list[list[str]], records: list[list[str]]) -> bool:
    """False if the first record looks like data: it holds a number, or a cell that comes back below it."""
    if not records:
        return True
    first = [cell.strip() for cell in records[0]]
    if any(_NUMBER.match(cell) for cell in first):
        return False
    below = rows[1:] if rows and rows[0] == records[0] else rows
    repeated = sum(
        any(row[i].strip() == cell for row in below)
        for i, cell in enumerate(first)
        if cell and below and i < len(below[0])
    )
    return 2 * repeated < len(first)


@dataclass(slots=True)
class Record:
    """One record and the physical line it begins at."""

    line: int
    cells: list[str]


def read_records(lines: Lines, dialect: Dialect, findings: Findings) -> Iterator[Record]:
    """Records of the right width. Others are counted with their line; blank lines only if a record follows.

    The first record, if it is a header, is handed out whatever its width.
    """
    reader = _reader(iter(lines), dialect.delimiter, quoted=dialect.quoted)
    header, blanks = dialect.header, list[int]()
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            _reject_broken(error, start, reader.line_num, header=header, findings=findings)
            continue
        if not cells or (len(cells) == 1 and _blank(cells)):
            blanks.append(start)
            continue
        for line in blanks:
            findings.reject("blank line", line=line)
        blanks.clear()
        if lines.bad and not lines.bad.isdisjoint(range(start, reader.line_num + 1)):
            reason = f"bytes that are not {lines.encoding.codec.removesuffix('-sig').upper()} text"
            if header:
                raise unreadable(f"line {start}: the header holds {reason}; save the file as UTF-8")
            findings.reject(reason, line=start)
        elif header or len(cells) == dialect.width:
            header = False
            yield Record(start, cells)
        else:
            findings.reject(_ragged(cells, dialect.width, start, reader.line_num), line=start)


def _ragged(cells: list[str], width: int, start: int, end: int) -> str:
    spans = f"; the record spans lines {start} to {end}, so a quote may be unclosed" if end > start else ""
    return f"{len(cells)} cells instead of {width}{spans}"


def _reject_broken(error: csv.Error, start: int, end: int, *, header: bool, findings: Findings) -> None:
    text = str(error)
    if header:
        raise unreadable(f"line {start}: the header's quoting is broken ({text}); double the quotes inside cells")
    if "unexpected end of data" in text or "field larger" in text:
        raise unreadable(f"line {start}: a quote is opened and never closed; close it, or double quotes inside cells")
    findings.reject(f"broken quoting ({text}); double the quotes inside cells", line=max(start, end))


def _names(dialect: Dialect, records: Iterator[Record], findings: Findings) -> list[str]:
    if not dialect.header:
        names = [f"column_{i}" for i in range(1, dialect.width + 1)]
        findings.warn(
            f"the first line looks like data, so the columns are called {names[0]} to {names[-1]}; "
            "add a header line to name them"
        )
        return names
    header = next(records, None)
    if header is None:
        raise unreadable(
            "the file has no readable line; " + (findings.first_rejection() or "upload one with a header line and data")
        )
    if len(header.cells) != dialect.width:
        raise unreadable(
            f"line {header.line}: the header has {len(header.cells)} cells, but most lines have {dialect.width}; "
            "give every column one name"
        )
    return unique_names(header.cells, findings)


def unique_names(cells: list[str], findings: Findings) -> list[str]:
    """Column names without blanks, repeats or NUL characters; every change is warned about."""
    names: list[str] = []
    taken = {ROW_ID}
    plain = [cell.replace("\0", "").strip() for cell in cells]
    wanted = Counter(plain)
    uses = Counter[str]()
    for i, name in enumerate(plain, start=1):
        if "\0" in cells[i - 1]:
            findings.warn(f"the name of column {i} held NUL characters, which were taken out")
        if len(name) > _MAX_NAME:
            raise unreadable(f"the name of column {i} has {len(name):,} characters; at most {_MAX_NAME:,} are taken")
        base = chosen = name or f"column_{i}"
        while chosen in taken or (chosen != name and chosen in wanted):
            uses[base] = max(uses[base], 1) + 1
            chosen = f"{base}_{uses[base]}"
        if chosen != name:
            why = f"repeats the name '{shorten(name, 60)}'" if name else "has no name"
            findings.warn(f"column {i} {why} and is called '{shorten(chosen, 60)}'")
        taken.add(chosen)
        names.append(chosen)
    return names


def _batches(
    records: Iterator[Record], names: list[str], lines: Lines, path: Path, findings: Findings, tick: Tick
) -> Iterator[pl.DataFrame]:
    most = max(BATCH_CELLS // len(names), 1)
    size, total, rows, chars = path.stat().st_size, 0, list[list[str]](), 0
    for record in records:
        rows.append(record.cells)
        if len(rows) >= most or lines.chars - chars >= BATCH_CHARS:
            yield _frame(rows, names)
            total += len(rows)
            rows, chars = [], lines.chars
            tick(min(chars / max(size, 1), 1.0), f"{total:,} rows read")
    total += len(rows)
    if not total:
        first = findings.first_rejection()
        raise unreadable(
            "the table has no data rows" + (f" ({first})" if first else " under its header; upload one with data")
        )
    if findings.rejected_count > total:
        raise unreadable(
            f"{findings.rejected_count:,} of {findings.rejected_count + total:,} lines cannot be read as "
            f"{len(names)} columns ({listed(names, 3)}); first: {findings.first_rejection()}"
        )
    if rows:
        yield _frame(rows, names)


def _frame(rows: list[list[str]], names: list[str]) -> pl.DataFrame:
    return pl.DataFrame(
        [pl.Series(name, column, dtype=pl.String) for name, column in zip(names, zip(*rows, strict=True), strict=True)]
    )
