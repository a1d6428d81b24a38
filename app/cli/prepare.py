"""What has to be there before any process serves: the schema and a first API key."""

from app.core.errors import Misconfigured
from app.core.principal import SCOPES
from app.registry.keys import KeyWriter
from app.registry.session import Database
from app.settings import Settings


async def first_key(settings: Settings, secret: str | None) -> str | None:
    """Make the first key if there is none, or see that the operator's own exists; its secret if it was made now."""
    database = Database(settings.database_url, settings.database)
    try:
        async with database.write() as session:
            keys = KeyWriter(session)
            if secret is not None:
                if await keys.find(secret) is not None:
                    return None
                if await keys.revoked(secret):
                    raise Misconfigured("the key in AIMASS_API_KEY was revoked; choose another")
            elif await keys.count():
                return None
            return (await keys.create("first", list(SCOPES), secret))[1]
    finally:
        await database.close()
