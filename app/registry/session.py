"""Engines and sessions.

A read session and a write session are different types, so that a repository says which it needs. On SQLite a write
session begins IMMEDIATE: it takes the write lock at once and can never be refused it half way through.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Float, event
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import Connection, Engine, ExceptionContext, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoneFree
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from app.core.errors import Misconfigured, Unavailable
from app.registry.together import Answer, Ask, Together
from app.settings import DatabaseSettings


class ReadSession(AsyncSession):
    """Reads one consistent state; never commits."""


class WriteSession(AsyncSession):
    """One transaction, committed by `Database.write` when its block ends well."""


class now(FunctionElement[float]):  # noqa: N801 - reads as SQL
    """The database's clock, seconds since the epoch, moving within a transaction."""

    inherit_cache = True
    type = Float(53)


@compiles(now, "sqlite")
def _now_sqlite(_element: now, _compiler: SQLCompiler, **_: Any) -> str:  # noqa: ANN401 - compiler options
    return "((julianday('now') - 2440587.5) * 86400.0)"  # unixepoch('subsec') needs SQLite 3.42; Debian 12 has 3.40


@compiles(now, "postgresql")
def _now_postgresql(_element: now, _compiler: SQLCompiler, **_: Any) -> str:  # noqa: ANN401 - compiler options
    return "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"


DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}


def async_url(url: str) -> str:
    """The address with its asyncio driver. Misconfigured names the setting when it is of no supported kind."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise Misconfigured(
            f"AIMASS_DATABASE_URL is not an address: {url!r}; use sqlite:///FILE or postgresql://…"
        ) from None
    backend = parsed.get_backend_name()
    if backend not in DRIVERS:
        raise Misconfigured(f"AIMASS_DATABASE_URL names '{backend}'; use sqlite:///FILE or postgresql://USER@HOST/NAME")
    return parsed.set(drivername=DRIVERS[backend]).render_as_string(hide_password=False)


class Database:
    """The two engines of one process and one event loop. Close it in the loop that used it."""

    def __init__(self, url: str, settings: DatabaseSettings | None = None) -> None:
        settings = settings or DatabaseSettings()
        address = async_url(url)
        self.is_sqlite = address.startswith("sqlite")
        if self.is_sqlite:
            self._read = _sqlite_engine(address, "DEFERRED", settings)
            self._write = _sqlite_engine(address, "IMMEDIATE", settings)
        else:
            self._read = self._write = _postgresql_engine(address, settings)
        # SQLite has one writer at a time; waiting in line is quicker than its busy handler, which sleeps and polls.
        self._turn: asyncio.Lock | contextlib.nullcontext[None] = (
            asyncio.Lock() if self.is_sqlite else contextlib.nullcontext()
        )
        self._groups: dict[Any, Together[Any, Any]] = {}

    @asynccontextmanager
    async def read(self) -> AsyncIterator[ReadSession]:
        """A session for reading. Unavailable when the database does not answer."""
        with _translated():
            async with ReadSession(self._read, expire_on_commit=False) as session:
                await _connect(session)
                yield session

    @asynccontextmanager
    async def write(self) -> AsyncIterator[WriteSession]:
        """A transaction: commits when the block ends, rolls back when it raises."""
        with _translated():
            async with self._turn, WriteSession(self._write, expire_on_commit=False) as session, session.begin():
                await _connect(session)
                yield session

    async def together(
        self, work: Callable[[WriteSession, Sequence[Ask]], Awaitable[Sequence[Answer | Exception]]], ask: Ask
    ) -> Answer:
        """What `work` answers to `ask`, in one transaction with whatever else waits for the same `work`.

        `work` returns an answer or an error for each; it must have written nothing for those that it refuses.
        """
        group = self._groups.get(work)
        if group is None:

            async def transaction(asks: Sequence[Ask]) -> Sequence[Answer | Exception]:
                async with self.write() as session:
                    return await work(session, asks)

            group = self._groups[work] = Together(transaction)
        answer: Answer = await group.ask(ask)
        return answer

    async def close(self) -> None:
        """Close every connection."""
        for group in self._groups.values():
            await group.close()
        await self._read.dispose()
        if self._write is not self._read:
            await self._write.dispose()


_IN_TIME = "not in time"  # a time-out says nothing itself


async def _connect(session: AsyncSession) -> None:
    """Take the connection now, so that a server that is away is told from an error of the block itself."""
    try:
        await session.connection()
    except NoneFree:
        why = "every connection to the registry is in use; PostgreSQL may have more (AIMASS_DATABASE_POOL_SIZE)"
        raise Unavailable(why, retry_after_s=2.0) from None
    except OSError as error:
        why = str(error) or _IN_TIME
        raise Unavailable(f"the registry does not answer (AIMASS_DATABASE_URL): {why}", retry_after_s=2.0) from error


# SQLSTATEs of what passes by itself: lost connections, transactions that others have undone, a server without room or
# connections to spare, one that stops or starts, a lock time-out.
_PASSING = ("08", "40", "53", "57P", "55P03")


def _passes(error: BaseException) -> bool:
    """True for what is not the statement's fault."""
    driver = error.orig if isinstance(error, DBAPIError) else error
    if str(getattr(driver, "sqlstate", None) or "").startswith(_PASSING):
        return True
    return isinstance(error, (OperationalError, InterfaceError)) or (
        isinstance(error, DBAPIError) and error.connection_invalidated
    )


def upsert(session: AsyncSession, table: Any) -> Any:  # noqa: ANN401 - a row's class or a table; of either dialect
    """An INSERT into the table that takes `on_conflict_do_update` and `on_conflict_do_nothing`."""
    insert = postgresql_insert if session.get_bind().dialect.name == "postgresql" else sqlite_insert
    return insert(table)


class _translated:  # noqa: N801 - a context manager that reads as a phrase
    """Turn what passes by itself, a lost connection or a lock time-out say, into Unavailable; leave other errors."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None and _passes(error):
            reason = error.orig if isinstance(error, DBAPIError) else error
            raise Unavailable(f"the registry does not answer: {reason}", retry_after_s=2.0) from error
        if isinstance(error, (ConnectionError, TimeoutError)) and not isinstance(error, Unavailable):
            why = str(error) or _IN_TIME
            raise Unavailable(f"the registry does not answer: {why}", retry_after_s=2.0) from error


def _sqlite_engine(address: str, begin: str, settings: DatabaseSettings) -> AsyncEngine:
    engine = create_async_engine(
        address,
        pool_size=5,
        max_overflow=5,
        pool_timeout=settings.lock_timeout_s,
        pool_reset_on_return=None,
        connect_args={"timeout": settings.lock_timeout_s},
    )
    _prepare_sqlite(engine.sync_engine, begin)
    return engine


def _prepare_sqlite(engine: Engine, begin: str) -> None:
    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:  # noqa: ANN401 - the driver's own class
        connection.isolation_level = None  # transactions are begun below, not guessed by the driver
        cursor = connection.cursor()
        # WAL lets readers go on while one writes; NORMAL may lose the last commits at power loss, never consistency.
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(f"BEGIN {begin}")


def _postgresql_engine(address: str, settings: DatabaseSettings) -> AsyncEngine:
    timeout_ms = str(int(settings.lock_timeout_s * 1000))
    engine = create_async_engine(
        address,
        pool_size=settings.pool_size,
        max_overflow=settings.pool_size,
        pool_timeout=settings.lock_timeout_s,
        pool_pre_ping=True,
        connect_args={
            "timeout": settings.lock_timeout_s,
            "command_timeout": settings.timeout_s,
            "server_settings": {"lock_timeout": timeout_ms, "application_name": "aimass", "jit": "off"},
        },
    )

    @event.listens_for(engine.sync_engine, "handle_error")
    def _give_up(context: ExceptionContext) -> None:
        # Else the rollback that follows waits for the answer that has not come.
        if isinstance(context.original_exception, TimeoutError):
            context.is_disconnect = True

    return engine
