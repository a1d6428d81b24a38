"""Models as the API shows them."""

from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, Field

from app.core.host import host_class
from app.core.resources import AliasMove, Model, ModelVersion, StoredFile, Variant
from app.core.version_folder import PAGE
from app.gateway.schemas import Timestamp
from app.specs.base import NO_NUL, Spec, VersionNumber


class ModelOut(BaseModel):
    """A named sequence of versions, and the aliases that point into it."""

    name: str
    latest_version: int
    aliases: dict[str, int]
    created_at: Timestamp
    links: dict[str, str]

    @classmethod
    def of(cls, model: Model) -> "ModelOut":
        """From the registry's object."""
        here = f"/api/v1/models/{model.name}"
        return cls(
            name=model.name,
            latest_version=model.latest,
            aliases=model.aliases,
            created_at=model.created_at,
            links={"self": here, "versions": f"{here}/versions", "latest": f"{here}/versions/{model.latest}"},
        )


class HostOut(BaseModel):
    """A variant on one class of hosts: those with the same instruction sets for kernels."""

    host: str = Field(examples=["avx512_vnni+avx512f+avx2"])
    state: str
    reason: str | None = Field(description="why it was rejected there")
    metrics: dict[str, float] = Field(description="on test rows")
    latency: dict[str, Any]


def _hosts(variant: Variant) -> list[HostOut]:
    """The host that made it first, unless it was measured anew there."""
    found = list(variant.elsewhere)
    made = host_class(variant.latency["host"]) if "host" in variant.latency else None
    if made is not None and all(one.host != made for one in found) and (own := variant.measured(made)):
        found.insert(0, own)
    return [HostOut.model_validate(asdict(one)) for one in found]


class VariantOut(BaseModel):
    """One way to run the version, measured. `fp32` is the base; a rejected one is never served by default."""

    name: str
    state: str
    reason: str | None = Field(description="why it was rejected")
    recipe: dict[str, Any]
    bytes: int
    metrics: dict[str, float]
    latency: dict[str, Any] = Field(
        description="p50_ms, p95_ms at batch 1; items_per_s at `batch`; the host it was measured on"
    )
    hosts: list[HostOut] = Field(description="on which classes of hosts it was measured; elsewhere fp32 is served")


class ModelVersionOut(BaseModel):
    """One trained model."""

    model: str
    version: int
    state: str
    task: str
    family: str
    main_metric: str
    metrics: dict[str, float] = Field(description="on test rows that training never saw")
    signature: dict[str, Any] = Field(
        description="tensors, columns and classes; of two classes a threshold, if it has one"
    )
    schema_: dict[str, Any] = Field(
        alias="schema", serialization_alias="schema", description="JSON schema of one instance"
    )
    lineage: dict[str, Any]
    variants: list[VariantOut]
    digest: str = Field(
        description="SHA-256 over the paths and digests of the files that training made; variants that were added "
        "later are not part of it, their files have digests of their own"
    )
    created_at: Timestamp
    links: dict[str, str]

    @classmethod
    def of(cls, version: ModelVersion) -> "ModelVersionOut":
        """From the registry's object."""
        here = f"/api/v1/models/{version.model}/versions/{version.version}"
        variants = [
            VariantOut(
                name=v.name,
                state=v.state,
                reason=v.reason,
                recipe=v.recipe,
                bytes=v.bytes,
                metrics=v.metrics,
                latency=v.latency,
                hosts=_hosts(v),
            )
            for v in version.variants
        ]
        return cls.model_validate(
            {
                "model": version.model,
                "version": version.version,
                "state": version.state,
                "task": version.task,
                "family": version.family,
                "main_metric": version.main_metric,
                "metrics": version.metrics,
                "signature": version.signature,
                "schema": version.schema,
                "lineage": version.lineage,
                "variants": variants,
                "digest": version.digest,
                "created_at": version.created_at,
                "links": {
                    "self": here,
                    "files": f"{here}/files",
                    "card": f"{here}/card",
                    **({} if version.task == "inference" else {"page": f"{here}/files/{PAGE}"}),
                    "job": f"/api/v1/jobs/{version.lineage.get('job')}",
                },
            }
        )


class FileOut(BaseModel):
    """A file of a version."""

    path: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, file: StoredFile) -> "FileOut":
        """From the registry's object."""
        return cls(path=file.path, bytes=file.bytes, sha256=file.sha256)


class AliasIn(Spec):
    """Where an alias is to point, and why."""

    version: VersionNumber
    reason: str = Field("", max_length=1000, pattern=NO_NUL)


class AliasOut(BaseModel):
    """One move of an alias."""

    alias: str
    version: int | None = Field(description="null: the alias was removed")
    previous: int | None
    at: Timestamp
    by: str
    reason: str

    @classmethod
    def of(cls, move: AliasMove) -> "AliasOut":
        """From the registry's object."""
        return cls.model_validate(
            {
                "alias": move.alias,
                "version": move.version,
                "previous": move.previous,
                "at": move.at,
                "by": move.by,
                "reason": move.reason,
            }
        )


class ComparisonRow(BaseModel):
    """One version in a comparison."""

    model: str
    version: int
    family: str
    metrics: dict[str, float]
    variants: list[VariantOut]
    settings: dict[str, Any]


class ComparisonOut(BaseModel):
    """Versions side by side, in the order asked for."""

    items: list[ComparisonRow]
