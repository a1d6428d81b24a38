"""Creates that may be sent twice: the second time returns what the first time made."""

import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from app.core.principal import Principal
from app.registry.idempotency import Key, forget, remember, remember_all, replay, replay_all
from app.registry.session import WriteSession

MAX_KEY_LENGTH = 255


@dataclass(frozen=True, slots=True)
class Once:
    """An Idempotency-Key, whose it is, and a digest of the request that came with it."""

    principal: Principal
    key: str | None
    fingerprint: str

    @property
    def id(self) -> Key | None:
        """The key as the registry knows it."""
        return None if self.key is None else (self.principal.key_id, self.key)


def once(principal: Principal, key: str | None, operation: str, request: Any) -> Once:  # noqa: ANN401 - any JSON value
    """Describe a request for `create_once`."""
    if key is None:
        return Once(principal, None, "")
    raw = json.dumps([operation, request], sort_keys=True)
    return Once(principal, key, hashlib.sha256(raw.encode()).hexdigest())


async def create_once(session: WriteSession, request: Once, create: Callable[[], Awaitable[str]]) -> str:
    """The name or id of what `create` makes, or made before for the same key; in the caller's transaction."""
    if request.key is None:
        return await create()
    made = await replay(session, request.principal.key_id, request.key, request.fingerprint)
    if made is not None:
        return made
    made = await create()
    await remember(session, request.principal.key_id, request.key, made)
    return made


Made = str | Exception


async def create_all_once(
    session: WriteSession,
    requests: Sequence[Once],
    create: Callable[[Sequence[int]], Awaitable[Sequence[Made]]],
) -> list[Made]:
    """`create_once` of many: `create` gets positions, and makes or refuses each without a trace.

    A key that comes twice is answered twice, the second time like any later request with that key.
    """
    made: dict[int, Made] = {}
    while left := [i for i in range(len(requests)) if i not in made]:
        made |= await _create_turn(session, requests, _first_of_each_key(requests, left), create)
    return [made[i] for i in range(len(requests))]


def _first_of_each_key(requests: Sequence[Once], positions: Iterable[int]) -> list[int]:
    first: dict[Key | int, int] = {}
    for i in positions:
        first.setdefault(requests[i].id or i, i)
    return list(first.values())


async def _create_turn(
    session: WriteSession,
    requests: Sequence[Once],
    turn: Sequence[int],
    create: Callable[[Sequence[int]], Awaitable[Sequence[Made]]],
) -> dict[int, Made]:
    keys = {i: key for i in turn if (key := requests[i].id) is not None}
    before = await replay_all(session, {key: requests[i].fingerprint for i, key in keys.items()})
    old = {i: before[key] for i, key in keys.items() if key in before}
    fresh = [i for i in turn if i not in old]
    new = dict(zip(fresh, await create(fresh), strict=True))
    await remember_all(session, {key: it for i, key in keys.items() if isinstance(it := new.get(i), str)})
    await forget(session, [key for i, key in keys.items() if isinstance(new.get(i), Exception)])
    return {**old, **new}
