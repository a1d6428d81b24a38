"""Creates that may be sent twice: the second time returns what the first time made."""

import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from app.core.principal import Principal
from app.registry.idempotency import remember, replay
from app.registry.session import WriteSession

MAX_KEY_LENGTH = 255


@dataclass(frozen=True, slots=True)
class Once:
    """An Idempotency-Key, whose it is, and a digest of the request that came with it."""

    principal: Principal
    key: str | None
    fingerprint: str


def once(principal: Principal, key: str | None, operation: str, request: Any) -> Once:  # noqa: ANN401 - any JSON value
    """Describe a request for `create_once`."""
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
