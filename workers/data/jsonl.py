"""JSON Lines: one flat object a line, with the numbers as they are written."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import polars as pl

from app.settings import LimitSettings
from app.specs.data import ROW_ID
from workers.data.delimited import BATCH_CELLS, BATCH_CHARS
from workers.data.encoding import Lines, detect_encoding
from workers.data.findings import Findings, Tick, shorten, unreadable

Cells = dict[str, str | None]


def read_jsonl(path: Path, findings: Findings, limits: LimitSettings, tick: Tick) -> Iterator[pl.DataFrame]:
    """Batches of string columns; a later batch may have columns that an earlier one lacks.

    Numbers keep their digits, true and false become text, null and absent keys are missing; types are inferred later
    over the whole file. InvalidData: no readable line, or too many keys.
    """
    encoding = detect_encoding(path, findings)
    findings.details["encoding"] = encoding.codec
    lines = Lines(path, encoding, limits.line_mb << 20)
    size, total, chars = path.stat().st_size, 0, 0
    rows: list[Cells] = []
    names: dict[str, None] = {}
    for cells in _rows(lines, findings):
        rows.append(cells)
        names.update(dict.fromkeys(cells))
        if len(names) > limits.columns:
            raise unreadable(f"line {lines.number}: over {limits.columns:,} different keys (AIMASS_LIMIT_COLUMNS)")
        if len(rows) * len(names) >= BATCH_CELLS or lines.chars - chars >= BATCH_CHARS:
            yield _frame(rows, list(names))
            total += len(rows)
            rows, chars = [], lines.chars
            tick(min(chars / max(size, 1), 1.0), f"{total:,} rows read")
    total += len(rows)
    if not total or not names:
        raise unreadable(f"no line holds an object with values; {findings.first_rejection()}")
    if rows:
        yield _frame(rows, list(names))


def _frame(rows: list[Cells], names: list[str]) -> pl.DataFrame:
    return pl.DataFrame([pl.Series(name, [row.get(name) for row in rows], dtype=pl.String) for name in names])


def _rows(lines: Lines, findings: Findings) -> Iterator[Cells]:
    for line in lines:
        if not line.strip():
            continue
        if lines.number in lines.bad:
            findings.reject("bytes that are not text in the file's encoding", line=lines.number)
            continue
        try:
            yield _parse(line)
        except (ValueError, RecursionError) as error:
            findings.reject(shorten(str(error)), line=lines.number)


def _parse(line: str) -> Cells:
    """One line's cells; ValueError says what is wrong with it."""
    try:
        parsed = json.loads(
            line, object_pairs_hook=_unique, parse_int=str, parse_float=_finite, parse_constant=_refuse_constant
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(parsed, dict):
        raise ValueError('not an object; write {"column": value, …}')  # noqa: TRY004 - the line's fault, not the caller's
    if any(not key.strip() or key == ROW_ID for key in parsed):
        raise ValueError(f"a key is blank or '{ROW_ID}', which is reserved; rename it")
    return {_text(key): _cell(key, value) for key, value in parsed.items()}


def _cell(key: str, value: Any) -> str | None:  # noqa: ANN401 - any JSON value
    if isinstance(value, (dict, list)):
        raise ValueError(f"'{shorten(key, 60)}' is nested; flatten it into columns")  # noqa: TRY004 - as above
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if value is None else _text(value)


def _text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair, which is no character") from None
    if "\0" in value:
        raise ValueError("a NUL character, which is no text; leave it out")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _finite(text: str) -> str:
    if float(text) in {float("inf"), float("-inf")}:
        raise ValueError(f"{shorten(text, 40)} is too large for a number")
    return text


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON; write null")
