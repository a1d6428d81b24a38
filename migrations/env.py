"""How migrations run: one at a time (advisory lock on PostgreSQL, write lock on SQLite), with time-outs."""

import asyncio

from alembic import context
from sqlalchemy import text
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from app.registry.tables import Base

ADVISORY_LOCK = 0x41494D41  # "AIMA"
LOCK_TIMEOUT_S = 60
STATEMENT_TIMEOUT_S = 600


def _migrate(connection: Connection) -> None:
    sqlite = connection.dialect.name == "sqlite"
    if sqlite:
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        connection.commit()
        connection.connection.isolation_level = None  # type: ignore[attr-defined] # the driver must not commit before DDL
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT_S}s'"))
        connection.execute(text(f"SET statement_timeout = '{STATEMENT_TIMEOUT_S}s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=sqlite,
        compare_type=True,
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()


async def _run(url: str) -> None:
    arguments = {"timeout": LOCK_TIMEOUT_S} if url.startswith("sqlite") else {"timeout": 10}
    engine = create_async_engine(url, connect_args=arguments)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(_migrate)
    finally:
        await engine.dispose()


asyncio.run(_run(context.config.attributes["url"]))
