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

    name: str = Field(description="of the model")
    latest_version: int = Field(description="the newest")
    aliases: dict[str, int] = Field(description="versions by alias")
    created_at: Timestamp = Field(description="when its first version was made")
    links: dict[str, str] = Field(description="addresses of the model and its versions")

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
    """A variant on one class of hosts: those with the same instruction sets for kernels, or the same GPU."""

    host: str = Field(
        description="its instruction sets, or `cuda` and the name of its GPU",
        examples=["avx512_vnni+avx512f+avx2", "cuda NVIDIA H200"],
    )
    state: str = Field(description="`accepted` or `rejected`, on hosts of this class")
    reason: str | None = Field(description="why it was rejected there")
    metrics: dict[str, float] = Field(description="on test rows")
    latency: dict[str, Any] = Field(description="as `latency` of the variant, of a host of this class")


def _hosts(variant: Variant) -> list[HostOut]:
    """The host that made it first, unless it was measured anew there."""
    found = list(variant.elsewhere)
    made = host_class(variant.latency["host"]) if "host" in variant.latency else None
    if made is not None and all(one.host != made for one in found) and (own := variant.measured(made)):
        found.insert(0, own)
    return [HostOut.model_validate(asdict(one)) for one in found]


class VariantOut(BaseModel):
    """One way to run the version, measured. `fp32` is the base; a rejected one is never served by default."""

    name: str = Field(description="`fp32` is the full model")
    state: str = Field(description="`accepted` or `rejected`")
    reason: str | None = Field(description="why it was rejected")
    recipe: dict[str, Any] = Field(description="how it was made")
    bytes: int = Field(description="of its graph")
    metrics: dict[str, float] = Field(description="on the rows that judged it")
    latency: dict[str, Any] = Field(
        description="p50_ms and p95_ms at batch 1; batch_p50_ms, batch_p95_ms and items_per_s at `batch`; the host it "
        "was measured on"
    )
    hosts: list[HostOut] = Field(description="on which classes of hosts it was measured; elsewhere fp32 is served")


class ModelVersionOut(BaseModel):
    """One trained model."""

    model: str = Field(description="that it is a version of")
    version: int = Field(description="counts from 1")
    state: str = Field(description="of the version")
    task: str = Field(description="that it was trained for; `inference` of an imported one")
    family: str = Field(description="that learned it; `imported`")
    main_metric: str = Field(description="by which it was chosen; empty of an imported one")
    metrics: dict[str, float] = Field(description="on test rows that training never saw")
    signature: dict[str, Any] = Field(
        description="tensors, columns and classes; of two classes a threshold, if it has one"
    )
    schema_: dict[str, Any] = Field(
        alias="schema", serialization_alias="schema", description="JSON schema of one instance"
    )
    lineage: dict[str, Any] = Field(description="data set, job, seed, environment that it comes from")
    variants: list[VariantOut] = Field(description="the full model first")
    digest: str = Field(
        description="SHA-256 over the paths and digests of the files that training made; variants that were added "
        "later are not part of it, their files have digests of their own"
    )
    created_at: Timestamp = Field(description="when it was made")
    links: dict[str, str] = Field(description="addresses of this version, its files, card, page and job")

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

    path: str = Field(description="within the version")
    bytes: int = Field(description="of the file")
    sha256: str = Field(description="of its content")

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

    alias: str = Field(description="its name")
    version: int | None = Field(description="null: the alias was removed")
    previous: int | None = Field(description="the version before; null if there was none")
    at: Timestamp = Field(description="when it was moved")
    by: str = Field(description="who moved it")
    reason: str = Field(description="as it was given")

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

    model: str = Field(description="that it is a version of")
    version: int = Field(description="of the model")
    family: str = Field(description="that learned it")
    metrics: dict[str, float] = Field(description="on test rows")
    variants: list[VariantOut] = Field(description="of this version")
    settings: dict[str, Any] = Field(description="that it was trained with")


class ComparisonOut(BaseModel):
    """Versions side by side, in the order asked for."""

    items: list[ComparisonRow] = Field(description="a row for each version")
