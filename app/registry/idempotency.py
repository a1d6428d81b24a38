"""First answers to creates that carried an Idempotency-Key, written in the transaction that created the resource."""

from sqlalchemy import delete
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from app.core.errors import Conflict, IdempotencyMismatch
from app.registry.session import WriteSession, now
from app.registry.tables import IdempotencyRow

KEPT_S = 7 * 86_400.0


async def replay(session: WriteSession, key_id: str, key: str, fingerprint: str) -> str | None:
    """The resource that this key made before, or None: then `remember` must be called in the same transaction.

    Two transactions with one key cannot both get None: the second waits for the row that the first has inserted.
    IdempotencyMismatch if the key came with another body.
    """
    upsert = postgresql_insert if session.get_bind().dialect.name == "postgresql" else sqlite_insert
    fresh = await session.scalar(
        upsert(IdempotencyRow)
        .values(key_id=key_id, key=key, fingerprint=fingerprint, resource="", created_at=now())
        .on_conflict_do_nothing()
        .returning(IdempotencyRow.key)
    )
    if fresh is not None:
        return None
    row = await session.get(IdempotencyRow, (key_id, key), populate_existing=True)
    if row is None:
        raise Conflict("a request with this Idempotency-Key is being handled; send it again")
    if row.fingerprint != fingerprint:
        raise IdempotencyMismatch("this Idempotency-Key was used with another request; use a new one for a new request")
    return row.resource


async def remember(session: WriteSession, key_id: str, key: str, resource: str) -> None:
    """Note what the create made."""
    row = await session.get_one(IdempotencyRow, (key_id, key))
    row.resource = resource


async def forget_old(session: WriteSession) -> None:
    """Drop answers older than a week."""
    await session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at < now() - KEPT_S))
