"""First answers to creates that carried an Idempotency-Key, written in the transaction that created the resource."""

from collections.abc import Collection, Mapping
from typing import cast

from sqlalchemy import Table, bindparam, delete, select, tuple_, update

from app.core.errors import Conflict, IdempotencyMismatch
from app.registry.session import WriteSession, now, upsert
from app.registry.tables import IdempotencyRow

KEPT_S = 7 * 86_400.0
_MISMATCH = "this Idempotency-Key was used with another request; use a new one for a new request"
Key = tuple[str, str]  # whose it is (the id of an API key), and the Idempotency-Key itself
_KEYS = cast("Table", IdempotencyRow.__table__)
_REMEMBER = (
    update(_KEYS)
    .where(IdempotencyRow.key_id == bindparam("whose"), IdempotencyRow.key == bindparam("which"))
    .values(resource=bindparam("made"))
)


async def replay_all(session: WriteSession, asked: Mapping[Key, str]) -> dict[Key, str | Conflict]:
    """Of keys and fingerprints: what each key made before, or why it cannot be used.

    For every other key `remember_all` or `forget` must follow in the same transaction. Two transactions with one key
    cannot both be left to make it: the second waits for the row that the first has inserted.
    """
    if not asked:
        return {}
    statement = upsert(session, _KEYS).values(resource="", created_at=now()).on_conflict_do_nothing()
    # In order, so that two transactions with the same keys wait for each other one way only.
    rows = [{"key_id": key[0], "key": key[1], "fingerprint": asked[key]} for key in sorted(asked)]
    fresh = await session.execute(statement.returning(_KEYS.c.key_id, _KEYS.c.key), rows)
    old = asked.keys() - {(key_id, key) for key_id, key in fresh}
    return await _made(session, {key: asked[key] for key in old}) if old else {}


async def _made(session: WriteSession, asked: Mapping[Key, str]) -> dict[Key, str | Conflict]:
    found = await session.execute(
        select(IdempotencyRow.key_id, IdempotencyRow.key, IdempotencyRow.fingerprint, IdempotencyRow.resource).where(
            tuple_(IdempotencyRow.key_id, IdempotencyRow.key).in_(list(asked))
        )
    )
    made: dict[Key, str | Conflict] = {
        key: Conflict("a request with this Idempotency-Key is being handled; send it again") for key in asked
    }
    for key_id, key, fingerprint, resource in found:
        same = fingerprint == asked[key_id, key]
        made[key_id, key] = resource if same else IdempotencyMismatch(_MISMATCH)
    return made


async def replay(session: WriteSession, key_id: str, key: str, fingerprint: str) -> str | None:
    """`replay_all` of one key. IdempotencyMismatch if it came with another body."""
    made = (await replay_all(session, {(key_id, key): fingerprint})).get((key_id, key))
    if isinstance(made, Conflict):
        raise made
    return made


async def remember_all(session: WriteSession, made: Mapping[Key, str]) -> None:
    """Note what each key has made."""
    if made:
        rows = [{"whose": key[0], "which": key[1], "made": resource} for key, resource in made.items()]
        await session.execute(_REMEMBER, rows)


async def remember(session: WriteSession, key_id: str, key: str, resource: str) -> None:
    """`remember_all` of one key."""
    await remember_all(session, {(key_id, key): resource})


async def forget(session: WriteSession, keys: Collection[Key]) -> None:
    """Keys that have made nothing may be used again."""
    if keys:
        await session.execute(
            delete(IdempotencyRow).where(tuple_(IdempotencyRow.key_id, IdempotencyRow.key).in_(list(keys)))
        )


async def forget_old(session: WriteSession) -> None:
    """Drop answers older than a week."""
    await session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at < now() - KEPT_S))
