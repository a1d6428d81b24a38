"""Data sets as the API shows them."""

from typing import Annotated, Any

from pydantic import BaseModel, Field

from app.core.resources import DatasetVersion
from app.gateway.schemas import Timestamp
from app.specs.base import Name, Spec


class ColumnOut(BaseModel):
    """One column: its name, its type, how many values are missing, how many differ."""

    name: str = Field(description="as in the file's header")
    type: str = Field(description="`integer`, `number`, `boolean`, `category`, `text` and so on, told by the values")
    missing: int = Field(description="rows without a value")
    unique: int | None = Field(
        None, description="different values, of large tables by an estimate; null where they were not counted"
    )


class SchemaOut(BaseModel):
    """The columns in order; empty until the version is ready."""

    columns: list[ColumnOut] = Field(description="in the file's order; empty until the data set is ready")


class RejectedRowOut(BaseModel):
    """A row or archive member that could not be read."""

    line: int | None = Field(None, description="1-based line of the original file")
    reason: str = Field(description="why it could not be read")
    path: str | None = Field(None, description="member of the archive")


class RejectedOut(BaseModel):
    """How many rows could not be read, and the first of them."""

    count: int = Field(description="rows or members that could not be read, and are left out")
    first: list[RejectedRowOut] = Field(description="the first ones of them")


class DatasetIn(Spec):
    """A data set whose file is fetched rather than uploaded."""

    name: Annotated[Name, Field(description="an existing name gets the next version", examples=["telco"])]
    uri: Annotated[
        str,
        Field(
            max_length=4096,
            description="`https://…` or `s3://BUCKET/KEY`, from the operator's list (AIMASS_SOURCES_ALLOW)",
            examples=["https://data.example.com/telco.csv"],
        ),
    ]
    kind: Annotated[str, Field(description="`auto`, `tabular` or `image`")] = "auto"


class SourceOut(BaseModel):
    """Where a version was fetched from, and what its server said of it."""

    uri: str = Field(description="values of its query are not kept")
    etag: str | None = Field(description="as the source gave it")
    last_modified: str | None = Field(description="as the source gave it")
    fetched_at: Timestamp | None = Field(description="null until it is here")


class DatasetVersionOut(BaseModel):
    """One immutable upload and what was made of it."""

    name: str = Field(description="of the data set")
    version: int = Field(description="counts from 1; a version never changes")
    kind: str = Field(description="`tabular` or `image`, as it was asked for until it is ready")
    state: str = Field(description="`ingesting`, then `ready` or `failed`")
    filename: str = Field(description="of the file as it came")
    rows: int | None = Field(description="that were read; null until it is ready")
    bytes: int = Field(description="of the file as it came")
    sha256: str | None = Field(description="of the file as it came; null until it is fetched")
    source: SourceOut | None = Field(description="of a version that was fetched from an address")
    schema_: SchemaOut = Field(alias="schema", serialization_alias="schema", description="columns and their types")
    warnings: list[str] = Field(description="what ingest found odd; read them before you train")
    rejected_rows: RejectedOut = Field(description="what could not be read")
    error: dict[str, Any] | None = Field(description="why a `failed` one failed")
    created_at: Timestamp = Field(description="when it was uploaded")
    links: dict[str, str] = Field(description="addresses of this version, its profile, rows and job")

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
            sha256=version.sha256 or None,
            source=SourceOut.model_validate(version.source) if version.source else None,
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
