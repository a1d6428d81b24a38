"""The schema. Times are seconds since the epoch by the database's clock, so that leases need only one clock."""

from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Json = JSON().with_variant(JSONB(), "postgresql")
Serial = BigInteger().with_variant(Integer(), "sqlite")  # SQLite numbers rows by itself only for INTEGER keys
Id = String(36)
Sha = String(64)


class Base(DeclarativeBase):
    """Names every constraint, so that migrations can."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        dict[str, Any]: Json,
        list[Any]: Json,
        float: Float(53),
        str: Text(),
    }


class BlobRow(Base):
    """A stored content. `refs` counts the file rows that name it; `unused_since` starts the wait before removal."""

    __tablename__ = "blobs"
    sha256: Mapped[str] = mapped_column(Sha, primary_key=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    refs: Mapped[int] = mapped_column(default=0)
    unused_since: Mapped[float | None] = mapped_column(index=True)


class FileRow(Base):
    """A file of a data set version, a model version or a job's checkpoint (`owner` is its id)."""

    __tablename__ = "files"
    owner: Mapped[str] = mapped_column(Id, primary_key=True)
    path: Mapped[str] = mapped_column(String(512), primary_key=True)
    sha256: Mapped[str] = mapped_column(ForeignKey("blobs.sha256"), index=True)
    bytes: Mapped[int] = mapped_column(BigInteger)


class DatasetRow(Base):
    """A data set's name and its version counter."""

    __tablename__ = "datasets"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    latest: Mapped[int]
    created_at: Mapped[float]


class DatasetVersionRow(Base):
    """One upload."""

    __tablename__ = "dataset_versions"
    __table_args__ = (UniqueConstraint("dataset_id", "version"),)
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"))
    version: Mapped[int]
    kind: Mapped[str] = mapped_column(String(20))
    state: Mapped[str] = mapped_column(String(20))
    filename: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(Sha)
    rows: Mapped[int | None] = mapped_column(BigInteger)
    columns: Mapped[list[Any]]
    warnings: Mapped[list[Any]]
    rejected: Mapped[dict[str, Any]]
    error: Mapped[dict[str, Any] | None] = mapped_column(Json)
    job_id: Mapped[str | None] = mapped_column(Id, index=True)
    created_at: Mapped[float]
    source: Mapped[dict[str, Any] | None] = mapped_column(Json)
    fetch_uri: Mapped[str | None]  # with whatever its query holds; forgotten once it has been fetched or has failed


class ModelRow(Base):
    """A model's name and its version counter."""

    __tablename__ = "models"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    latest: Mapped[int]
    created_at: Mapped[float]


class ModelVersionRow(Base):
    """One trained model."""

    __tablename__ = "model_versions"
    __table_args__ = (UniqueConstraint("model_id", "version"),)
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    version: Mapped[int]
    state: Mapped[str] = mapped_column(String(20))
    task: Mapped[str] = mapped_column(String(40))
    family: Mapped[str] = mapped_column(String(100))
    main_metric: Mapped[str] = mapped_column(String(40))
    metrics: Mapped[dict[str, Any]]
    signature: Mapped[dict[str, Any]]
    schema: Mapped[dict[str, Any]]
    lineage: Mapped[dict[str, Any]]
    digest: Mapped[str] = mapped_column(Sha)
    dataset_version_id: Mapped[str | None] = mapped_column(ForeignKey("dataset_versions.id"), index=True)
    job_id: Mapped[str | None] = mapped_column(Id, index=True)
    created_at: Mapped[float]


class VariantRow(Base):
    """A measured way to run a model version."""

    __tablename__ = "variants"
    version_id: Mapped[str] = mapped_column(ForeignKey("model_versions.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    state: Mapped[str] = mapped_column(String(20))
    reason: Mapped[str | None]
    recipe: Mapped[dict[str, Any]]
    path: Mapped[str | None]  # a rejected variant's file is not kept
    bytes: Mapped[int] = mapped_column(BigInteger)
    metrics: Mapped[dict[str, Any]]
    latency: Mapped[dict[str, Any]]
    created_at: Mapped[float]


class MeasurementRow(Base):
    """What a variant is on another class of hosts than that of the job that made it; the newest counts."""

    __tablename__ = "measurements"
    __table_args__ = (
        ForeignKeyConstraint(["version_id", "variant"], ["variants.version_id", "variants.name"], ondelete="CASCADE"),
    )
    version_id: Mapped[str] = mapped_column(Id, primary_key=True)
    variant: Mapped[str] = mapped_column(String(100), primary_key=True)
    host: Mapped[str] = mapped_column(String(200), primary_key=True)
    state: Mapped[str] = mapped_column(String(20))
    reason: Mapped[str | None]
    metrics: Mapped[dict[str, Any]]
    latency: Mapped[dict[str, Any]]
    created_at: Mapped[float]


class AliasRow(Base):
    """Where an alias points now."""

    __tablename__ = "aliases"
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"), primary_key=True)
    alias: Mapped[str] = mapped_column(String(100), primary_key=True)
    version: Mapped[int]


class AliasMoveRow(Base):
    """Where an alias pointed, when, by whom and why; only ever appended to."""

    __tablename__ = "alias_moves"
    id: Mapped[int] = mapped_column(Serial, primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"), index=True)
    alias: Mapped[str] = mapped_column(String(100))
    version: Mapped[int | None]  # None: removed
    previous: Mapped[int | None]
    at: Mapped[float]
    by: Mapped[str]
    reason: Mapped[str]


class EndpointRow(Base):
    """Where an endpoint's traffic goes."""

    __tablename__ = "endpoints"
    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    model: Mapped[str] = mapped_column(String(100))
    version: Mapped[int]
    variant: Mapped[str] = mapped_column(String(100))
    spec: Mapped[dict[str, Any]]
    revision: Mapped[int]
    created_at: Mapped[float]
    updated_at: Mapped[float]


class JobRow(Base):
    """A job. The lease lives here: `attempt` is the fencing token, `lease_until` when it runs out."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_ready", "state", "device", "priority", "id"),
        Index("ix_jobs_state", "state", "id"),  # pages of one state; leases too, since few jobs run at a time
        Index("ix_jobs_model", "model", "id"),
        Index("ix_jobs_kind", "kind", "id"),
    )
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    kind: Mapped[str] = mapped_column(String(40))
    state: Mapped[str] = mapped_column(String(20))
    spec: Mapped[dict[str, Any]]
    priority: Mapped[int]
    device: Mapped[str] = mapped_column(String(20))
    model: Mapped[str | None] = mapped_column(String(100))
    timeout_s: Mapped[float]
    memory_mb: Mapped[int]
    attempt: Mapped[int]
    max_attempts: Mapped[int]
    cancel_requested: Mapped[bool]
    not_before: Mapped[float]
    lease_until: Mapped[float | None]
    pushed_at: Mapped[float | None]
    waiting_for: Mapped[int]  # unfinished jobs named in `after`
    worker: Mapped[str | None]
    progress: Mapped[dict[str, Any]]
    error: Mapped[dict[str, Any] | None] = mapped_column(Json)
    result: Mapped[dict[str, Any] | None] = mapped_column(Json)
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None] = mapped_column(index=True)


class JobAfterRow(Base):
    """`job_id` may start once `after_id` has succeeded."""

    __tablename__ = "job_after"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    after_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True, index=True)


class JobEventRow(Base):
    """What happened to a job, in order of `id`."""

    __tablename__ = "job_events"
    __table_args__ = (Index("ix_job_events_job", "job_id", "id"),)
    id: Mapped[int] = mapped_column(Serial, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    type: Mapped[str] = mapped_column(String(20))
    at: Mapped[float]
    data: Mapped[dict[str, Any]]


class MetricPointRow(Base):
    """One point of a live curve; a later attempt overwrites the step it repeats."""

    __tablename__ = "metric_points"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    step: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    value: Mapped[float]
    at: Mapped[float]


class WorkerRow(Base):
    """A worker agent that has been seen."""

    __tablename__ = "workers"
    id: Mapped[str] = mapped_column(String(200), primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    device: Mapped[str] = mapped_column(String(20))
    job_id: Mapped[str | None] = mapped_column(Id)
    started_at: Mapped[float]
    seen_at: Mapped[float] = mapped_column(index=True)


class GatewayRow(Base):
    """A gateway process that has been seen. One that is started again in its `slot` takes its predecessor's place."""

    __tablename__ = "gateways"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    slot: Mapped[str | None]
    host: Mapped[str]
    pid: Mapped[int]
    started_at: Mapped[float]
    seen_at: Mapped[float]


class GatewayEndpointRow(Base):
    """The generation (`created_at`, `revision`) of an endpoint that a gateway process tried last; `error`: in vain."""

    __tablename__ = "gateway_endpoints"
    endpoint: Mapped[str] = mapped_column(String(100), primary_key=True)
    gateway_id: Mapped[str] = mapped_column(Id, primary_key=True)  # no foreign key: a late report must not fail
    created_at: Mapped[float]
    revision: Mapped[int]
    error: Mapped[str | None]


class ApiKeyRow(Base):
    """An API key; the secret itself is never stored."""

    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    prefix: Mapped[str] = mapped_column(String(20))
    hash: Mapped[str] = mapped_column(Sha, unique=True)
    scopes: Mapped[list[Any]]
    created_at: Mapped[float]
    revoked_at: Mapped[float | None]


class IdempotencyRow(Base):
    """The first answer to a create that carried an Idempotency-Key."""

    __tablename__ = "idempotency"
    key_id: Mapped[str] = mapped_column(Id, primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(Sha)
    resource: Mapped[str]
    created_at: Mapped[float] = mapped_column(index=True)
