"""API keys: 256 random bits, kept as SHA-256. A slow hash would add nothing, since there is no password to guess."""

import hashlib
import secrets
from collections.abc import Sequence

from sqlalchemy import func, select, update

from app.core.errors import NotFound
from app.core.ids import new_id
from app.core.resources import ApiKey, Page
from app.registry.session import ReadSession, WriteSession, now
from app.registry.tables import ApiKeyRow

KEY_PREFIX = "aim_"


def hash_key(secret: str) -> str:
    """What is stored of a key."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _key(row: ApiKeyRow) -> ApiKey:
    return ApiKey(row.id, row.name, row.prefix, tuple(row.scopes), row.created_at, row.revoked_at)


class KeyReader:
    """What the authenticator and the administrator ask."""

    def __init__(self, session: ReadSession | WriteSession) -> None:
        self._session = session

    async def find(self, secret: str) -> ApiKey | None:
        """The key with this secret, unless it is unknown or revoked."""
        row = await self._session.scalar(
            select(ApiKeyRow).where(ApiKeyRow.hash == hash_key(secret), ApiKeyRow.revoked_at.is_(None))
        )
        return _key(row) if row else None

    async def get(self, key_id: str) -> ApiKey:
        """The key, revoked or not. NotFound otherwise."""
        row = await self._session.get(ApiKeyRow, key_id, populate_existing=True)
        if row is None:
            raise NotFound(f"there is no key '{key_id}'")
        return _key(row)

    async def revoked(self, secret: str) -> bool:
        """True if there was a key with this secret and it was revoked."""
        revoked = select(ApiKeyRow.id).where(ApiKeyRow.hash == hash_key(secret), ApiKeyRow.revoked_at.is_not(None))
        return await self._session.scalar(revoked) is not None

    async def count(self) -> int:
        """How many keys were ever made."""
        return await self._session.scalar(select(func.count()).select_from(ApiKeyRow)) or 0

    async def page(self, limit: int, cursor: str | None) -> Page[ApiKey]:
        """Newest first."""
        query = select(ApiKeyRow).order_by(ApiKeyRow.id.desc()).limit(limit + 1)
        if cursor:
            query = query.where(ApiKeyRow.id < cursor)
        rows = list(await self._session.scalars(query))
        return Page(tuple(_key(row) for row in rows[:limit]), rows[limit - 1].id if len(rows) > limit else None)


class KeyWriter(KeyReader):
    """Changes of keys, within the caller's transaction."""

    def __init__(self, session: WriteSession) -> None:
        super().__init__(session)
        self._write = session

    async def create(self, name: str, scopes: Sequence[str], secret: str | None = None) -> tuple[ApiKey, str]:
        """(the key, its secret): the only time that the secret is known. A given `secret` is the operator's own."""
        secret = secret or KEY_PREFIX + secrets.token_urlsafe(32)
        row = ApiKeyRow(
            id=new_id(), name=name, prefix=secret[:8], hash=hash_key(secret), scopes=list(scopes), created_at=now()
        )
        self._write.add(row)
        await self._write.flush()
        await self._write.refresh(row)
        return _key(row), secret

    async def revoke(self, key_id: str) -> ApiKey:
        """Refuse the key from now on; revoking twice changes nothing. NotFound otherwise."""
        await self._write.execute(
            update(ApiKeyRow).where(ApiKeyRow.id == key_id, ApiKeyRow.revoked_at.is_(None)).values(revoked_at=now())
        )
        return await self.get(key_id)
