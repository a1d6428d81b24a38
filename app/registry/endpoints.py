"""Endpoints."""

from typing import Any

from sqlalchemy import delete, select

from app.core.errors import Conflict, NotFound
from app.core.resources import Endpoint, Page
from app.registry.session import ReadSession, WriteSession, now, upsert
from app.registry.tables import EndpointRow


def _endpoint(row: EndpointRow) -> Endpoint:
    return Endpoint(
        row.name, row.model, row.version, row.variant, row.spec, row.revision, row.created_at, row.updated_at
    )


class EndpointReader:
    """What anyone may ask of endpoints."""

    def __init__(self, session: ReadSession | WriteSession) -> None:
        self._session = session

    async def get(self, name: str) -> Endpoint:
        """The endpoint. NotFound otherwise."""
        row = await self._session.get(EndpointRow, name, populate_existing=True)
        if row is None:
            raise NotFound(f"there is no endpoint '{name}'")
        return _endpoint(row)

    async def page(self, limit: int, cursor: str | None) -> Page[Endpoint]:
        """By name."""
        query = select(EndpointRow).order_by(EndpointRow.name).limit(limit + 1)
        if cursor:
            query = query.where(EndpointRow.name > cursor)
        rows = list(await self._session.scalars(query))
        return Page(tuple(_endpoint(row) for row in rows[:limit]), rows[limit - 1].name if len(rows) > limit else None)

    async def all(self) -> list[Endpoint]:
        """Every endpoint, for a gateway that keeps its host in step."""
        return [_endpoint(row) for row in await self._session.scalars(select(EndpointRow).order_by(EndpointRow.name))]

    async def routed_by(self, model: str, alias: str) -> list[Endpoint]:
        """Endpoints whose route names the alias of the model."""
        rows = await self._session.scalars(select(EndpointRow).where(EndpointRow.model == model))
        return [_endpoint(row) for row in rows if row.spec["routes"][0].get("alias") == alias]


class EndpointWriter(EndpointReader):
    """Changes of endpoints, within the caller's transaction."""

    def __init__(self, session: WriteSession) -> None:
        super().__init__(session)
        self._write = session

    async def put(
        self, name: str, model: str, version: int, variant: str, spec: dict[str, Any], *, take_over: bool = True
    ) -> tuple[Endpoint, bool]:
        """Create or change; (the endpoint, whether it is new).

        Conflict, and nothing changes, where it is another model's and `take_over` is False.
        """
        route = {"model": model, "version": version, "variant": variant, "spec": spec, "updated_at": now()}
        # One statement, since two transactions may create the same endpoint at the same time.
        row = await self._write.scalar(
            upsert(self._write, EndpointRow)
            .values(name=name, revision=1, created_at=now(), **route)
            .on_conflict_do_update(
                index_elements=["name"],
                set_=route | {"revision": EndpointRow.revision + 1},
                where=None if take_over else EndpointRow.model == model,
            )
            .returning(EndpointRow)
            .execution_options(populate_existing=True)
        )
        if row is None:
            raise Conflict(f"endpoint '{name}' serves another model than '{model}'")
        return _endpoint(row), row.revision == 1

    async def is_still(self, was: Endpoint) -> bool:
        """True if the endpoint is what it was; no other transaction changes it then before this one ends."""
        row = await self._write.get(EndpointRow, was.name, populate_existing=True, with_for_update=True)
        return row is not None and _endpoint(row).generation == was.generation

    async def renew(self, model: str, version: int) -> list[str]:
        """Have gateways look anew at what they serve of a version; names of its endpoints."""
        serving = EndpointRow.model == model, EndpointRow.version == version
        rows = list(await self._write.scalars(select(EndpointRow).where(*serving).with_for_update()))
        for row in rows:
            row.revision += 1
        return [row.name for row in rows]

    async def delete(self, name: str) -> None:
        """Remove the endpoint. NotFound otherwise."""
        await self.get(name)
        await self._write.execute(delete(EndpointRow).where(EndpointRow.name == name))
