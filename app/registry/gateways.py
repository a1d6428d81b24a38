"""Gateway processes: which are alive, and what each has made of the endpoints."""

from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import and_, delete, select, update

from app.core.resources import Applied
from app.registry.session import ReadSession, WriteSession, now, upsert
from app.registry.tables import GatewayEndpointRow, GatewayRow

HEARTBEAT_S = 5.0
SILENT_S = 3 * HEARTBEAT_S  # a process that has said nothing for this long is dead


async def register(session: WriteSession, gateway_id: str, slot: str | None, host: str, pid: int) -> None:
    """A process has started, or was forgotten while it was silent; it has reported nothing yet."""
    if slot is not None:
        await _remove(session, (await session.scalars(select(GatewayRow.id).where(GatewayRow.slot == slot))).all())
    await session.merge(GatewayRow(id=gateway_id, slot=slot, host=host, pid=pid, started_at=now(), seen_at=now()))


async def heartbeat(session: WriteSession, gateway_id: str) -> bool:
    """A process is alive; False if it is not known (any more). Those that have died are forgotten in passing."""
    mine = update(GatewayRow).where(GatewayRow.id == gateway_id).values(seen_at=now()).returning(GatewayRow.id)
    seen = (await session.scalars(mine)).first()
    dead = (await session.scalars(select(GatewayRow.id).where(GatewayRow.seen_at < now() - SILENT_S))).all()
    if dead:
        await _remove(session, dead)
    return seen is not None


async def unregister(session: WriteSession, gateway_id: str) -> None:
    """A process has stopped."""
    await _remove(session, [gateway_id])


async def report(session: WriteSession, gateway_id: str, changes: Mapping[str, Applied | None]) -> None:
    """What a process has made of these endpoints; None: it has let go of one that was deleted."""
    gone = [name for name, applied in changes.items() if applied is None]
    if gone:
        await session.execute(
            delete(GatewayEndpointRow).where(
                GatewayEndpointRow.gateway_id == gateway_id, GatewayEndpointRow.endpoint.in_(gone)
            )
        )
    rows = [
        {
            "endpoint": name,
            "gateway_id": gateway_id,
            "created_at": applied.generation[0],
            "revision": applied.generation[1],
            "error": applied.error,
        }
        for name, applied in changes.items()
        if applied is not None
    ]
    if rows:
        new = upsert(session, GatewayEndpointRow)
        told = {name: new.excluded[name] for name in ("created_at", "revision", "error")}
        await session.execute(new.on_conflict_do_update(index_elements=["endpoint", "gateway_id"], set_=told), rows)


async def applied_by(session: ReadSession | WriteSession, endpoints: Collection[str]) -> dict[str, dict[str, Applied]]:
    """What each live process has made of these endpoints: {process: {endpoint: …}}, nothing where it was not heard."""
    joined = and_(GatewayEndpointRow.gateway_id == GatewayRow.id, GatewayEndpointRow.endpoint.in_(list(endpoints)))
    query = (
        select(GatewayRow.id, GatewayEndpointRow)
        .outerjoin(GatewayEndpointRow, joined)
        .where(GatewayRow.seen_at > now() - SILENT_S)
    )
    found: dict[str, dict[str, Applied]] = {}
    for gateway_id, row in await session.execute(query):
        reports = found.setdefault(gateway_id, {})
        if row is not None:
            reports[row.endpoint] = Applied((row.created_at, row.revision), row.error)
    return found


async def _remove(session: WriteSession, ids: Sequence[str]) -> None:
    """Remove processes and their reports."""
    await session.execute(delete(GatewayEndpointRow).where(GatewayEndpointRow.gateway_id.in_(ids)))
    await session.execute(delete(GatewayRow).where(GatewayRow.id.in_(ids)))
