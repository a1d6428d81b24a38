"""Types of string columns, decided over every value of the file, and the casts that follow."""

from dataclasses import dataclass, field
from typing import Literal

import polars as pl

from workers.data.findings import Findings, listed, shorten

MISSING = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NAN", "null", "NULL", "Null", "None", "?", "-")
StoredKind = Literal["integer", "number", "boolean", "datetime", "string"]

_INTEGER = r"^[+-]?(?:0|[1-9][0-9]*)$"
_DECIMAL = r"^[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?$"
_CODE = r"^[+-]?0[0-9]+$"  # digits after a leading zero: a code, not a count
_NONFINITE = r"(?i)^[+-]?(?:inf|infinity|nan)$"
_COMMA = r"^[+-]?(?:[0-9]+|[0-9]{1,3}(?:\.[0-9]{3})+),[0-9]+(?:[eE][+-]?[0-9]+)?$"
_GROUPED = r"^[+-]?[0-9]{1,3}(?:\.[0-9]{3})+$"  # 1.000 and 1.000.000 where the comma is the decimal mark
_BOOLEAN = r"(?i)^(?:true|false)$"
_TIME = r"[0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,9})?)?"
_ZONE = r"(?:Z|[+-][0-9]{2}:?[0-9]{2})"
_DATE = rf"^[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}(?:[T ]{_TIME}{_ZONE}?)?$"
_ZONED = rf"T.*{_ZONE}$| .*{_ZONE}$"
_OTHER_DATE = r"^[0-9]{1,2}[/.-][0-9]{1,2}[/.-][0-9]{2,4}\b"
# A column is still a number or a date if this share of its values, or these few, cannot be read as one.
_BAD_SHARE = 0.01
_BAD_FEW, _BAD_FEW_SHARE = 3, 0.1
_EXAMPLES = 5


def strip(column: pl.Series) -> pl.Series:
    """Strings without blanks around them, under no name: polars takes some names, as `^a$`, for patterns."""
    return column.alias("").str.strip_chars()


@dataclass(slots=True)
class Evidence:
    """Counts over the stripped values of one column; `add` is called with each batch."""

    rows: int = 0
    missing: int = 0
    integers: int = 0
    beyond_int64: int = 0
    decimals: int = 0
    grouped: int = 0
    codes: int = 0
    nonfinite: int = 0
    commas: int = 0
    booleans: int = 0
    dates: int = 0
    zoned: int = 0
    other_dates: int = 0
    odd: list[str] = field(default_factory=list)

    @property
    def present(self) -> int:
        """Values that are not missing."""
        return self.rows - self.missing

    def add(self, column: pl.Series) -> None:
        """Take one batch of stripped strings into account."""
        self.rows += len(column)
        self.missing += column.null_count()
        rest = column.drop_nulls()
        hits, rest = _take(rest, _INTEGER)
        self.integers += len(hits)
        self.beyond_int64 += hits.cast(pl.Int64, strict=False).null_count()
        hits, rest = _take(rest, _CODE)
        self.codes += len(hits)
        hits, rest = _take(rest, _DECIMAL)
        self.decimals += len(hits)
        self.nonfinite += int((~hits.cast(pl.Float64).is_finite()).sum())
        if len(hits):
            self.grouped += int(hits.str.contains(_GROUPED).sum())
        if len(rest):
            self._add_words(rest)

    def _add_words(self, words: pl.Series) -> None:
        rest = words.filter(~words.is_in(MISSING))
        self.missing += len(words) - len(rest)
        hits, rest = _take(rest, _NONFINITE)
        self.nonfinite += len(hits)
        self.decimals += len(hits)
        hits, rest = _take(rest, _COMMA)
        self.commas += len(hits)
        hits, rest = _take(rest, _GROUPED)  # several dots; a single one was taken for a decimal
        self.commas += len(hits)
        hits, rest = _take(rest, _BOOLEAN)
        self.booleans += len(hits)
        hits, rest = _take(rest, _DATE)
        if len(hits):
            valid = parse_dates(hits).is_not_null()
            self.dates += int(valid.sum())
            self.zoned += int(hits.filter(valid).str.contains(_ZONED).sum())
            rest = pl.concat([rest, hits.filter(~valid)])
        if len(rest):
            self.other_dates += int(rest.str.contains(_OTHER_DATE).sum())
            if len(self.odd) < _EXAMPLES:
                self.odd += rest.head(_EXAMPLES - len(self.odd)).to_list()


def _take(values: pl.Series, pattern: str) -> tuple[pl.Series, pl.Series]:
    """Values that match, and the others."""
    if not len(values):
        return values, values
    mask = values.str.contains(pattern)
    if mask.all():
        return values, values.clear()
    return values.filter(mask), values.filter(~mask)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a column becomes."""

    kind: StoredKind
    decimal_comma: bool = False


def decide(name: str, seen: Evidence, delimiter: str, findings: Findings) -> Plan:
    """The column's type. Whatever is set missing or kept as text against its looks is warned about."""
    column = f"column '{shorten(name, 60)}'"
    if not seen.present:
        findings.warn(f"{column} has no values")
        return Plan("string")
    if seen.booleans == seen.present:
        return Plan("boolean")
    if seen.codes or (seen.beyond_int64 and not seen.decimals):
        if seen.codes + seen.integers + seen.decimals >= (1 - _BAD_SHARE) * seen.present:
            why = "some have leading zeros" if seen.codes else "some do not fit 64-bit integers"
            findings.warn(f"{column} holds digits but is kept as text, so that no digit is lost: {why}")
        return Plan("string")
    return _decide_number(column, seen, delimiter, findings) or _decide_date(column, seen, findings) or Plan("string")


def _decide_number(column: str, seen: Evidence, delimiter: str, findings: Findings) -> Plan | None:
    comma = bool(seen.commas) and delimiter != "," and seen.decimals == seen.grouped
    numbers = seen.integers + seen.decimals + (seen.commas if comma else 0)
    if numbers <= seen.nonfinite or not _tolerable(seen.present - numbers, seen.present):
        if seen.commas and seen.commas + seen.integers + seen.decimals == seen.present:
            findings.warn(
                f"{column} is kept as text: its commas may be decimal marks or may group digits; "
                "write numbers with a dot and no grouping"
            )
        return None
    if seen.nonfinite:
        findings.warn(f"{column}: {seen.nonfinite} infinite or too large values were set missing")
    if bad := seen.present - numbers:
        findings.warn(
            f"{column}: {bad} of {seen.present} values are not numbers and were set missing: {listed(seen.odd)}"
        )
    return Plan("number" if comma or seen.decimals else "integer", decimal_comma=comma)


def _decide_date(column: str, seen: Evidence, findings: Findings) -> Plan | None:
    bad = seen.present - seen.dates
    if seen.dates and _tolerable(bad, seen.present) and seen.zoned in {0, seen.dates}:
        if bad:
            findings.warn(
                f"{column}: {bad} of {seen.present} values are not ISO dates and were set missing: {listed(seen.odd)}"
            )
        return Plan("datetime")
    if seen.dates or seen.other_dates > seen.present / 2:
        findings.warn(
            f"{column} is kept as text: {seen.dates} of {seen.present} values are ISO dates"
            f"{' with and without a time zone' if 0 < seen.zoned < seen.dates else ''}; "
            "the order of day and month is not guessed, so write YYYY-MM-DD or YYYY-MM-DDTHH:MM:SS in every row"
        )
    return None


def _tolerable(bad: int, present: int) -> bool:
    return bad <= _BAD_SHARE * present or (bad <= _BAD_FEW and bad <= _BAD_FEW_SHARE * present)


def cast(column: pl.Series, plan: Plan) -> pl.Series:
    """Stripped strings as the planned type: Int64, Float64 (finite), Boolean, Datetime[us] or String; under no name."""
    column = column.alias("")
    if plan.kind == "integer":
        return column.cast(pl.Int64, strict=False)
    if plan.kind == "number":
        if plan.decimal_comma:
            column = column.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)
        return finite(column.cast(pl.Float64, strict=False))
    if plan.kind == "boolean":
        lower = column.str.to_lowercase()
        return (lower == "true").set(~lower.is_in(("true", "false")), None)
    if plan.kind == "datetime":
        return parse_dates(column)
    return column.set(column.is_in(MISSING), None)


def finite(column: pl.Series) -> pl.Series:
    """Floats with null in place of NaN and infinities."""
    return column.set(~column.is_finite(), None)


def parse_dates(column: pl.Series) -> pl.Series:
    """ISO dates and times as Datetime[us]; those with a zone in UTC. Impossible ones are null."""
    iso = column.str.replace(" ", "T", literal=True).str.replace(r"T(\d\d:\d\d)(Z|[+-]|$)", "T${1}:00${2}")
    frame = iso.to_frame("iso")
    zoned = (
        pl.col("iso")
        .str.replace(r"Z$", "+00:00")
        .str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%#z", strict=False, time_unit="us", time_zone="UTC")
    )
    parsed = frame.select(
        pl.coalesce(
            pl.col("iso").str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")),
            pl.col("iso").str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", strict=False, time_unit="us"),
            zoned.dt.replace_time_zone(None),
        )
    )
    return parsed.to_series().alias(column.name)
