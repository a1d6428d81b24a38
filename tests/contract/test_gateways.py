"""Gateway processes in the registry, on SQLite and on PostgreSQL."""

import asyncio

from sqlalchemy import func, select, update

from app.core.ids import new_id
from app.core.resources import Applied
from app.registry.gateways import SILENT_S, applied_by, heartbeat, register, report, unregister
from app.registry.session import Database, now
from app.registry.tables import GatewayEndpointRow, GatewayRow


async def start(database: Database, slot: str | None = None) -> str:
    gateway_id = new_id()
    async with database.write() as session:
        await register(session, gateway_id, slot, "host", 1)
    return gateway_id


async def heard(database: Database, *endpoints: str) -> dict[str, dict[str, Applied]]:
    async with database.read() as session:
        return await applied_by(session, endpoints)


async def tell(database: Database, gateway_id: str, **changes: Applied | None) -> None:
    async with database.write() as session:
        await report(session, gateway_id, changes)


async def beat(database: Database, gateway_id: str) -> bool:
    async with database.write() as session:
        return await heartbeat(session, gateway_id)


async def silence(database: Database, gateway_id: str) -> None:
    """As if it had said nothing for as long as makes it dead."""
    async with database.write() as session:
        await session.execute(
            update(GatewayRow).where(GatewayRow.id == gateway_id).values(seen_at=now() - SILENT_S - 1)
        )


async def test_what_each_has_applied_is_told_as_it_was_last(database: Database) -> None:
    first, second = await start(database), await start(database)
    name, other = new_id(), new_id()
    await tell(database, first, **{name: Applied((1.0 / 3, 1)), other: Applied((5.0, 2))})
    found = await heard(database, name)
    assert found[first] == {name: Applied((1.0 / 3, 1))}  # to the last digit
    assert found[second] == {}
    await tell(database, first, **{name: Applied((1.0 / 3, 2), "no memory")})
    assert (await heard(database, name, other))[first] == {
        name: Applied((1.0 / 3, 2), "no memory"),
        other: Applied((5.0, 2)),
    }
    await tell(database, first, **{name: None})
    assert (await heard(database, name))[first] == {}


async def test_one_that_has_stopped_or_died_is_not_waited_for(database: Database) -> None:
    stopped, dead, alive = await start(database), await start(database), await start(database)
    name = new_id()
    for gateway_id in (stopped, dead, alive):
        await tell(database, gateway_id, **{name: Applied((1.0, 1))})
    async with database.write() as session:
        await unregister(session, stopped)
    await silence(database, dead)
    found = await heard(database, name)
    assert stopped not in found
    assert dead not in found
    assert alive in found


async def test_the_dead_are_forgotten_by_whoever_lives(database: Database) -> None:
    dead, alive = await start(database), await start(database)
    await tell(database, dead, e=Applied((1.0, 1)))
    await silence(database, dead)
    assert await beat(database, alive)
    async with database.read() as session:
        assert await session.get(GatewayRow, dead) is None
        left = select(func.count()).where(GatewayEndpointRow.gateway_id == dead)
        assert await session.scalar(left) == 0
    assert not await beat(database, dead)  # it was only silent, and learns that it has to register anew


async def test_one_that_was_silent_and_not_yet_forgotten_lives_on(database: Database) -> None:
    gateway_id = await start(database)
    await silence(database, gateway_id)
    assert await beat(database, gateway_id)
    assert gateway_id in await heard(database)


async def test_a_restarted_process_takes_the_place_of_the_killed_one(database: Database) -> None:
    slot = new_id()
    killed = await start(database, slot)
    await tell(database, killed, e=Applied((1.0, 1)))
    again = await start(database, slot)
    found = await heard(database, "e")
    assert killed not in found
    assert found[again] == {}


async def test_many_at_once(database: Database) -> None:
    started = await asyncio.gather(*(start(database) for _ in range(8)))
    for _ in range(3):
        assert all(await asyncio.gather(*(beat(database, gateway_id) for gateway_id in started)))
    assert set(started) <= set(await heard(database))
