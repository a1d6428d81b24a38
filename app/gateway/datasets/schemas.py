"""Data sets as the API shows them."""

from typing import Any

from pydantic import BaseModel, Field

from app.core.resources import DatasetVersion
from app.gateway.schemas import Timestamp


class ColumnOut(BaseModel):
    """One column: its name, its type, how many values are missing, how many differ."""

    name: str
    type: str
    missing: int
    unique: int | None = None


class SchemaOut(BaseModel):
    """The columns in order; empty until the version is ready."""

    columns: list[ColumnOut]


class RejectedRowOut(BaseModel):
    """A row or archive member that could not be read."""

    line: int | None = Field(None, description="1-based line of the original file")
    reason: str
    path: str | None = Field(None, description="member of the archive")


class RejectedOut(BaseModel):
    """How many rows could not be read, and the first of them."""

    count: int
    first: list[RejectedRowOut]


class DatasetVersionOut(BaseModel):
    """One immutable upload and what was made of it."""

    name: str
    version: int
    kind: str
    state: str = Field(description="`ingesting`, then `ready` or `failed`")
    filename: str
    rows: int | None
    bytes: int
    sha256: str
    schema_: SchemaOut = Field(alias="schema", serialization_alias="schema")
    warnings: list[str]
    rejected_rows: RejectedOut
    error: dict[str, Any] | None
    created_at: Timestamp
    links: dict[str, str]

    @classmethod
    def of(cls, version: DatasetVersion) -> "DatasetVersionOut":
        """From the registry's object."""
        here = f"/api/v1/datasets/{version.name}/versions/{version.version}"
        links = {"self": here, "profile": f"{here}/profile", "rows": f"{here}/rows"}
        if version.job_id:
            links["job"] = f"/api/v1/jobs/{version.job_id}"
        return cls(
            name=version.name,
            version=version.version,
            kind=version.kind,
            state=version.state,
            filename=version.filename,
            rows=version.rows,
            bytes=version.bytes,
            sha256=version.sha256,
            schema={"columns": list(version.columns)},
            warnings=list(version.warnings),
            rejected_rows=version.rejected,
            error=version.error,
            created_at=version.created_at,
            links=links,
        )


class DatasetOut(DatasetVersionOut):
    """A named sequence of versions, as its newest one."""

    latest_version: int = Field(description="the same as `version`")

    @classmethod
    def newest(cls, version: DatasetVersion) -> "DatasetOut":
        """From the newest version."""
        shown = DatasetVersionOut.of(version)
        here = f"/api/v1/datasets/{version.name}"
        links = shown.links | {"self": here, "versions": f"{here}/versions", "latest": shown.links["self"]}
        return cls.model_validate(shown.model_dump(by_alias=True) | {"latest_version": version.version, "links": links})
