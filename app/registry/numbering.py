"""Version numbers without a race: the name's row is the counter, locked until the version is committed."""

from sqlalchemy import select, update

from app.core.ids import new_id
from app.registry.session import WriteSession, now, upsert
from app.registry.tables import DatasetRow, ModelRow


async def next_version(session: WriteSession, table: type[DatasetRow | ModelRow], name: str) -> tuple[str, int]:
    """(id of the named row, next version number); the name is made if it is new. A rollback leaves no gap."""
    await session.execute(
        upsert(session, table)
        .values(id=new_id(), name=name, latest=0, created_at=now())
        .on_conflict_do_nothing(index_elements=["name"])
    )
    number = await session.scalar(
        update(table).where(table.name == name).values(latest=table.latest + 1).returning(table.latest)
    )
    row_id = await session.scalar(select(table.id).where(table.name == name))
    if number is None or row_id is None:
        raise RuntimeError(f"the row of '{name}' vanished inside its own transaction")
    return row_id, number
