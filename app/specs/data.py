"""What the ingest job reports of a data set, and the files that it derives."""

from typing import Any, Literal

from app.specs.base import Spec

# Derived files of a ready data set version. Tabular: one typed column per column, plus ROW_ID. Image: ROW_ID, `image`
# (encoded bytes, as uploaded or PNG), `label` (string), `path`, `width`, `height`.
DATA_FILE = "data.parquet"
PROFILE_FILE = "profile.json"
ROW_ID = "__row_id"  # int64, 0-based, stable: splits are recorded in these

ColumnKind = Literal["integer", "number", "boolean", "category", "text", "datetime", "image"]


class ColumnSchema(Spec):
    """One column as the API shows it."""

    name: str
    type: ColumnKind
    missing: int
    unique: int | None = None


class RejectedRow(Spec):
    """A row, line or archive member that could not be read. `line` is 1-based in the original file."""

    line: int | None
    reason: str
    path: str | None = None


class IngestResult(Spec):
    """The `result` of an ingest job."""

    kind: Literal["tabular", "image"]
    rows: int
    columns: list[ColumnSchema]
    warnings: list[str] = []
    rejected_count: int = 0
    rejected_first: list[RejectedRow] = []
    details: dict[str, Any] = {}
