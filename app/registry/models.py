"""Models, their versions, variants and aliases."""

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from sqlalchemy import and_, delete, func, select, update

from app.core.errors import Conflict, NotFound
from app.core.host import host_class
from app.core.ids import new_id
from app.core.resources import AliasMove, Measured, Model, ModelVersion, Page, StoredFile, Variant
from app.registry.endpoints import EndpointReader
from app.registry.files import add_files, files_of, remove_files
from app.registry.numbering import next_version
from app.registry.session import ReadSession, WriteSession, now
from app.registry.tables import (
    AliasMoveRow,
    AliasRow,
    EndpointRow,
    MeasurementRow,
    ModelRow,
    ModelVersionRow,
    VariantRow,
)


def _variant(row: VariantRow, measured: Sequence[MeasurementRow]) -> Variant:
    return Variant(
        name=row.name,
        state=row.state,  # type: ignore[arg-type]
        reason=row.reason,
        recipe=row.recipe,
        path=row.path,
        bytes=row.bytes,
        metrics=row.metrics,
        latency=row.latency,
        created_at=row.created_at,
        elsewhere=tuple(
            Measured(one.host, one.state, one.reason, one.metrics, one.latency)  # type: ignore[arg-type]
            for one in measured
        ),
    )


def _host(latency: dict[str, Any]) -> str:
    return host_class(latency["host"]) if "host" in latency else ""


def _version(
    model: str, row: ModelVersionRow, variants: tuple[Variant, ...], files: tuple[StoredFile, ...] = ()
) -> ModelVersion:
    return ModelVersion(
        id=row.id,
        model=model,
        version=row.version,
        state=row.state,
        task=row.task,
        family=row.family,
        main_metric=row.main_metric,
        metrics=row.metrics,
        signature=row.signature,
        schema=row.schema,
        lineage=row.lineage,
        digest=row.digest,
        created_at=row.created_at,
        variants=variants,
        files=files,
    )


# Of the versions that are left; `ModelRow.latest` counts those that were ever made.
_NEWEST = (
    select(func.max(ModelVersionRow.version))
    .where(ModelVersionRow.model_id == ModelRow.id)
    .correlate(ModelRow)
    .scalar_subquery()
)


class ModelReader:
    """What anyone may ask of models."""

    def __init__(self, session: ReadSession | WriteSession) -> None:
        self._session = session

    async def page(self, limit: int, cursor: str | None) -> Page[Model]:
        """Those that have a version, by name."""
        query = select(ModelRow, _NEWEST).where(_NEWEST.is_not(None)).order_by(ModelRow.name).limit(limit + 1)
        if cursor:
            query = query.where(ModelRow.name > cursor)
        rows = list(await self._session.execute(query))
        items = tuple([await self._model(row, newest) for row, newest in rows[:limit]])
        return Page(items, items[-1].name if len(rows) > limit else None)

    async def _model(self, row: ModelRow, newest: int) -> Model:
        aliases = await self._session.execute(
            select(AliasRow.alias, AliasRow.version).where(AliasRow.model_id == row.id).order_by(AliasRow.alias)
        )
        return Model(row.name, newest, row.created_at, {alias: version for alias, version in aliases})  # noqa: C416 - rows are not pairs to the type checker

    async def _row(self, name: str) -> ModelRow:
        row = await self._session.scalar(select(ModelRow).where(ModelRow.name == name))
        if row is None:
            raise NotFound(f"there is no model '{name}'")
        return row

    async def get(self, name: str) -> Model:
        """The model, if it has a version. NotFound otherwise."""
        query = select(ModelRow, _NEWEST).where(ModelRow.name == name, _NEWEST.is_not(None))
        row = (await self._session.execute(query)).one_or_none()
        if row is None:
            raise NotFound(f"there is no model '{name}'")
        return await self._model(row[0], row[1])

    async def versions(self, name: str, limit: int, cursor: str | None) -> Page[ModelVersion]:
        """Newest first; the cursor is the last version number of the page before."""
        model = await self._row(name)
        query = (
            select(ModelVersionRow)
            .where(ModelVersionRow.model_id == model.id)
            .order_by(ModelVersionRow.version.desc())
            .limit(limit + 1)
        )
        if cursor:
            query = query.where(ModelVersionRow.version < int(cursor))
        rows = list(await self._session.scalars(query))
        items = [_version(name, row, await self._variants(row.id)) for row in rows[:limit]]
        return Page(tuple(items), str(rows[limit - 1].version) if len(rows) > limit else None)

    async def _variants(self, version_id: str) -> tuple[Variant, ...]:
        of_it = and_(MeasurementRow.version_id == VariantRow.version_id, MeasurementRow.variant == VariantRow.name)
        found = await self._session.execute(
            select(VariantRow, MeasurementRow)
            .outerjoin(MeasurementRow, of_it)
            .where(VariantRow.version_id == version_id)
            .order_by(VariantRow.created_at, VariantRow.name, MeasurementRow.host)
        )
        by_variant = groupby(found, key=itemgetter(0))
        return tuple(_variant(row, [one for _, one in rows if one is not None]) for row, rows in by_variant)

    async def version(self, name: str, version: int) -> ModelVersion:
        """One version with its variants and files. NotFound otherwise."""
        row = await self._version_row(name, version)
        return _version(name, row, await self._variants(row.id), await files_of(self._session, row.id))

    async def _version_row(self, name: str, version: int) -> ModelVersionRow:
        row = await self._session.scalar(
            select(ModelVersionRow).join(ModelRow).where(ModelRow.name == name, ModelVersionRow.version == version)
        )
        if row is None:
            raise NotFound(f"there is no model version '{name}@{version}'")
        return row

    async def resolve_alias(self, name: str, alias: str) -> int:
        """The version that the alias points to. NotFound otherwise."""
        model = await self._row(name)
        version = await self._session.scalar(
            select(AliasRow.version).where(AliasRow.model_id == model.id, AliasRow.alias == alias)
        )
        if version is None:
            raise NotFound(f"model '{name}' has no alias '{alias}'")
        return version

    async def alias_history(self, name: str, alias: str) -> list[AliasMove]:
        """Every move of the alias, newest first."""
        model = await self._row(name)
        rows = await self._session.scalars(
            select(AliasMoveRow)
            .where(AliasMoveRow.model_id == model.id, AliasMoveRow.alias == alias)
            .order_by(AliasMoveRow.id.desc())
        )
        return [AliasMove(row.alias, row.version, row.previous, row.at, row.by, row.reason) for row in rows]


class ModelWriter(ModelReader):
    """Changes of models, within the caller's transaction."""

    def __init__(self, session: WriteSession) -> None:
        super().__init__(session)
        self._write = session

    async def create_version(
        self,
        name: str,
        result: dict[str, Any],
        *,
        lineage: dict[str, Any],
        digest: str,
        files: Sequence[StoredFile],
        dataset_version_id: str | None,
        job_id: str | None,
    ) -> ModelVersion:
        """The next version of `name`, ready, with the measurements of a train job's `result`."""
        model_id, number = await next_version(self._write, ModelRow, name)
        row = ModelVersionRow(
            id=new_id(),
            model_id=model_id,
            version=number,
            state="ready",
            task=result["task"],
            family=result["family"],
            main_metric=result["main_metric"],
            metrics=result["metrics"],
            signature=result["signature"],
            schema=result["schema"],
            lineage=lineage,
            digest=digest,
            dataset_version_id=dataset_version_id,
            job_id=job_id,
            created_at=now(),
        )
        self._write.add(row)
        await self._write.flush()
        await add_files(self._write, row.id, files)
        await self._put_variants(row.id, result["variants"])
        return await self.version(name, number)

    async def add_variants(
        self, name: str, version: int, variants: Sequence[dict[str, Any]], files: Sequence[StoredFile]
    ) -> None:
        """Add variants to an existing version, with their files; one of a name that it has is replaced."""
        found = await self.version(name, version)
        await add_files(self._write, found.id, files)
        await self._put_variants(found.id, variants)

    async def _put_variants(self, version_id: str, variants: Sequence[dict[str, Any]]) -> None:
        for raw in variants:
            known = {
                key: raw[key] for key in ("name", "state", "reason", "recipe", "path", "bytes", "metrics", "latency")
            }
            old = await self._write.get(VariantRow, (version_id, raw["name"]), populate_existing=True)
            if old is None:
                self._write.add(VariantRow(version_id=version_id, created_at=now(), **known))
            elif old.state == "accepted" and _host(old.latency) != _host(raw["latency"]):
                await self._measure(version_id, _host(raw["latency"]), raw)  # the same file, made on another host
            else:
                for key, value in known.items():
                    setattr(old, key, value)
                await self._forget(version_id, _host(raw["latency"]), raw["name"])
        await self._write.flush()

    async def measured(self, name: str, version: int, host: str, variants: Sequence[dict[str, Any]]) -> None:
        """Keep what variants are on a class of hosts, in place of what was known. NotFound without the version."""
        found = await self.pin(name, version)
        known = {variant.name for variant in found.variants}
        for raw in variants:
            if raw["name"] in known:
                await self._measure(found.id, host, raw)

    async def _measure(self, version_id: str, host: str, raw: dict[str, Any]) -> None:
        await self._forget(version_id, host, raw["name"])
        told = {name: raw[name] for name in ("state", "reason", "metrics", "latency")}
        self._write.add(MeasurementRow(version_id=version_id, variant=raw["name"], host=host, created_at=now(), **told))

    async def _forget(self, version_id: str, host: str, variant: str) -> None:
        row = await self._write.get(MeasurementRow, (version_id, variant, host))
        if row is not None:
            await self._write.delete(row)
            await self._write.flush()

    async def pin(self, name: str, version: int) -> ModelVersion:
        """The version, which nobody can delete until the transaction ends. NotFound otherwise."""
        await self.hold(name, version)
        return await self.version(name, version)

    async def hold(self, name: str, version: int) -> None:
        """As `pin`, for those who know the version already."""
        await self._hold_row(name)
        await self._version_row(name, version)

    async def _hold_row(self, name: str) -> None:
        """Let no other transaction change what belongs to the model before this one ends."""
        await self._write.execute(update(ModelRow).where(ModelRow.name == name).values(latest=ModelRow.latest))

    async def move_alias(self, name: str, alias: str, version: int, *, by: str, reason: str) -> AliasMove:
        """Point the alias at a version, atomically; who did it and why is kept. NotFound without such a version."""
        await self.hold(name, version)
        model = await self._row(name)
        current = await self._write.get(AliasRow, (model.id, alias))
        previous = current.version if current else None
        if current:
            current.version = version
        else:
            self._write.add(AliasRow(model_id=model.id, alias=alias, version=version))
        return await self._note_move(model.id, alias, version, previous, by=by, reason=reason)

    async def remove_alias(self, name: str, alias: str, *, by: str, reason: str) -> AliasMove:
        """Remove the alias; its history stays. NotFound without it, Conflict while an endpoint routes by it."""
        await self._hold_row(name)  # else an endpoint may be routed by it meanwhile
        previous = await self.resolve_alias(name, alias)
        routed = await EndpointReader(self._write).routed_by(name, alias)
        if routed:
            first = routed[0].name
            raise Conflict(f"endpoint '{first}' routes by alias '{alias}'; route it elsewhere or delete it first")
        model = await self._row(name)
        await self._write.execute(delete(AliasRow).where(AliasRow.model_id == model.id, AliasRow.alias == alias))
        return await self._note_move(model.id, alias, None, previous, by=by, reason=reason)

    async def _note_move(
        self, model_id: str, alias: str, version: int | None, previous: int | None, *, by: str, reason: str
    ) -> AliasMove:
        row = AliasMoveRow(
            model_id=model_id, alias=alias, version=version, previous=previous, at=now(), by=by, reason=reason
        )
        self._write.add(row)
        await self._write.flush()
        await self._write.refresh(row)
        return AliasMove(alias, version, previous, row.at, by, reason)

    async def delete(self, name: str, version: int) -> None:
        """Remove a version. Conflict while an endpoint routes to it or an alias points at it."""
        found = await self.pin(name, version)
        endpoint = await self._write.scalar(
            select(EndpointRow.name).where(EndpointRow.model == name, EndpointRow.version == version)
        )
        if endpoint is not None:
            raise Conflict(f"endpoint '{endpoint}' routes to '{name}@{version}'; route it elsewhere or delete it first")
        alias = await self._write.scalar(
            select(AliasRow.alias).join(ModelRow).where(ModelRow.name == name, AliasRow.version == version)
        )
        if alias is not None:
            raise Conflict(f"alias '{alias}' points at '{name}@{version}'; move or delete it first")
        await remove_files(self._write, found.id)
        await self._write.execute(delete(VariantRow).where(VariantRow.version_id == found.id))
        await self._write.execute(delete(ModelVersionRow).where(ModelVersionRow.id == found.id))
