"""Empty, migrated registries."""

import asyncio
import secrets
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from app.registry.migrate import upgrade
from app.registry.session import async_url


def sqlite_registry(folder: Path) -> str:
    """A new SQLite registry's address."""
    url = f"sqlite:///{folder / 'registry.db'}"
    upgrade(url)
    return url


def postgres_registry(server_url: str) -> str:
    """A new database of a PostgreSQL server, migrated; its address."""
    url = empty_database(server_url)
    upgrade(url)
    return url


def empty_database(server_url: str) -> str:
    """A new database of a PostgreSQL server, without any table; its address."""
    name = f"t_{secrets.token_hex(6)}"
    asyncio.run(_create(server_url, name))
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)


async def _create(server_url: str, name: str) -> None:
    engine = create_async_engine(async_url(server_url), isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as connection:
            await connection.execute(text(f'CREATE DATABASE "{name}"'))
    finally:
        await engine.dispose()
