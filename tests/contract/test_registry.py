"""The registry's promises, on SQLite and on PostgreSQL."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from app.core.errors import Conflict, IdempotencyMismatch, NotFound, Unavailable
from app.core.ids import new_id
from app.core.jobs import JobFailure, NewJob
from app.core.resources import StoredFile
from app.registry.datasets import DatasetReader, DatasetWriter
from app.registry.endpoints import EndpointReader, EndpointWriter
from app.registry.files import add_files, files_of, forget_blob, remove_files, unused_blobs
from app.registry.idempotency import remember, replay
from app.registry.job_ledger import JobLedger
from app.registry.jobs import JobReader
from app.registry.keys import KeyReader, KeyWriter
from app.registry.models import ModelReader, ModelWriter
from app.registry.session import Database, async_url
from app.registry.tables import Base
from app.settings import DatabaseSettings
from tests.support.databases import empty_database


def name() -> str:
    return f"n-{new_id()}"


def content(letter: str = "a") -> StoredFile:
    return StoredFile("original", letter * 64, 10)


def result(**changes: Any) -> dict[str, Any]:
    variant = {
        "name": "fp32",
        "state": "accepted",
        "reason": None,
        "recipe": {},
        "path": "model.onnx",
        "bytes": 5,
        "metrics": {"accuracy": 0.9},
        "latency": {"items_per_s": 100.0},
    }
    base = {
        "task": "classification",
        "family": "gbdt",
        "main_metric": "accuracy",
        "metrics": {"accuracy": 0.9},
        "signature": {},
        "schema": {},
        "variants": [variant],
    }
    return base | changes


async def make_version(database: Database, model: str, **changes: Any) -> int:
    async with database.write() as session:
        made = await ModelWriter(session).create_version(
            model,
            result(**changes),
            lineage={"dataset": "d@1"},
            digest="f" * 64,
            files=[StoredFile("model.onnx", "c" * 64, 5)],
            dataset_version_id=None,
            job_id=None,
        )
    return made.version


class TestNumbering:
    async def test_100_concurrent_creates_give_1_to_100(self, database: Database) -> None:
        model = name()
        limit = asyncio.Semaphore(20)

        async def create() -> int:
            async with limit:
                return await make_version(database, model)

        numbers = await asyncio.gather(*(create() for _ in range(100)))
        assert sorted(numbers) == list(range(1, 101))

    async def test_a_rolled_back_create_leaves_no_gap(self, database: Database) -> None:
        data = name()

        async def create_and_fail() -> None:
            async with database.write() as session:
                await DatasetWriter(session).create(data, "auto", content(), "a.csv")
                raise RuntimeError("on purpose")

        with pytest.raises(RuntimeError, match="on purpose"):
            await create_and_fail()
        async with database.write() as session:
            made = await DatasetWriter(session).create(data, "auto", content(), "a.csv")
        assert made.version == 1


class TestDatasets:
    async def test_a_new_version_is_ingesting_and_keeps_the_original(self, database: Database) -> None:
        data = name()
        async with database.write() as session:
            await DatasetWriter(session).create(data, "auto", content("1"), "données 📊.csv")
        async with database.read() as session:
            found = await DatasetReader(session).version(data, 1)
        assert (found.state, found.filename, found.files) == ("ingesting", "données 📊.csv", (content("1"),))

    async def test_unknown_names_are_not_found(self, database: Database) -> None:
        async with database.read() as session:
            reader = DatasetReader(session)
            with pytest.raises(NotFound, match="there is no data set 'nope'"):
                await reader.get("nope")
            with pytest.raises(NotFound, match="nope@3"):
                await reader.version("nope", 3)

    async def test_a_version_that_trained_a_model_is_deleted_only_when_detached(self, database: Database) -> None:
        data, model = name(), name()
        async with database.write() as session:
            made = await DatasetWriter(session).create(data, "auto", content("2"), "a.csv")
        async with database.write() as session:
            await ModelWriter(session).create_version(
                model, result(), lineage={}, digest="0" * 64, files=[], dataset_version_id=made.id, job_id=None
            )
        with pytest.raises(Conflict, match=f"trained {model}@1"):
            async with database.write() as session:
                await DatasetWriter(session).delete(data, 1, detach=False)
        async with database.write() as session:
            await DatasetWriter(session).delete(data, 1, detach=True)
        async with database.read() as session:
            with pytest.raises(NotFound):
                await DatasetReader(session).version(data, 1)

    async def test_pages_hold_every_name_once(self, database: Database) -> None:
        mine = sorted(name() for _ in range(7))
        for data in mine:
            async with database.write() as session:
                await DatasetWriter(session).create(data, "auto", content(), "a.csv")
        seen: list[str] = []
        cursor: str | None = None
        while True:
            async with database.read() as session:
                page = await DatasetReader(session).page(3, cursor)
            seen += [item.name for item in page.items]
            cursor = page.next_cursor
            if cursor is None:
                break
        assert [item for item in seen if item in mine] == mine
        assert len(seen) == len(set(seen))


class TestBlobs:
    async def test_references_are_counted_and_the_last_one_frees(self, database: Database) -> None:
        first, second, digest = new_id(), new_id(), "d" * 64
        async with database.write() as session:
            await add_files(session, first, [StoredFile("x", digest, 1), StoredFile("y", digest, 1)])
            await add_files(session, second, [StoredFile("x", digest, 1)])
        async with database.write() as session:
            await remove_files(session, first)
            assert digest not in await unused_blobs(session, grace_s=-1)
        async with database.write() as session:
            await remove_files(session, second)
        async with database.write() as session:
            assert digest not in await unused_blobs(session, grace_s=3600)
            assert digest in await unused_blobs(session, grace_s=-1)
            await forget_blob(session, digest)
            assert digest not in await unused_blobs(session, grace_s=-1)

    async def test_a_path_that_is_written_again_means_the_new_content(self, database: Database) -> None:
        owner = new_id()
        async with database.write() as session:
            await add_files(session, owner, [StoredFile("x", "1" * 64, 1)])
            await add_files(session, owner, [StoredFile("x", "2" * 64, 2)])
            assert await files_of(session, owner) == (StoredFile("x", "2" * 64, 2),)


class TestModels:
    async def test_variants_are_added_to_a_version_and_replaced_by_name(self, database: Database) -> None:
        model = name()
        await make_version(database, model)
        int8 = {
            **result()["variants"][0],
            "name": "int8",
            "path": None,
            "state": "rejected",
            "reason": "slower",
        }
        for reason in ("slower", "not better"):
            async with database.write() as session:
                await ModelWriter(session).add_variants(model, 1, [int8 | {"reason": reason}], [])
        async with database.read() as session:
            found = await ModelReader(session).version(model, 1)
        assert [(v.name, v.state, v.reason) for v in found.variants] == [
            ("fp32", "accepted", None),
            ("int8", "rejected", "not better"),
        ]

    async def test_alias_history_is_append_only_and_names_who_and_why(self, database: Database) -> None:
        model = name()
        for _ in range(2):
            await make_version(database, model)
        for version in (1, 2, 1):
            async with database.write() as session:
                await ModelWriter(session).move_alias(model, "prod", version, by="ann", reason=f"to {version}")
        async with database.read() as session:
            reader = ModelReader(session)
            history = await reader.alias_history(model, "prod")
            assert await reader.resolve_alias(model, "prod") == 1
        assert [(m.version, m.previous, m.by, m.reason) for m in history] == [
            (1, 2, "ann", "to 1"),
            (2, 1, "ann", "to 2"),
            (1, None, "ann", "to 1"),
        ]

    async def test_a_version_in_use_cannot_be_deleted(self, database: Database) -> None:
        model, endpoint = name(), name()
        await make_version(database, model)
        async with database.write() as session:
            await EndpointWriter(session).put(endpoint, model, 1, "fp32", {})
        with pytest.raises(Conflict, match=f"endpoint '{endpoint}' routes to"):
            async with database.write() as session:
                await ModelWriter(session).delete(model, 1)
        async with database.write() as session:
            await EndpointWriter(session).delete(endpoint)
            await ModelWriter(session).delete(model, 1)
        async with database.read() as session:
            with pytest.raises(NotFound):
                await ModelReader(session).version(model, 1)


class TestEndpoints:
    async def test_each_change_is_a_revision(self, database: Database) -> None:
        endpoint = name()
        async with database.write() as session:
            first, new = await EndpointWriter(session).put(endpoint, "m", 1, "fp32", {"a": 1})
        async with database.write() as session:
            second, again = await EndpointWriter(session).put(endpoint, "m", 2, "int8", {"a": 2})
        assert (first.revision, new, second.revision, again) == (1, True, 2, False)
        async with database.read() as session:
            found = await EndpointReader(session).get(endpoint)
        assert (found.version, found.variant, found.spec) == (2, "int8", {"a": 2})

    async def test_one_that_is_made_again_is_another_generation(self, database: Database) -> None:
        endpoint = name()
        async with database.write() as session:
            first, _ = await EndpointWriter(session).put(endpoint, "m", 1, "fp32", {})
            await EndpointWriter(session).delete(endpoint)
        async with database.write() as session:
            second, new = await EndpointWriter(session).put(endpoint, "m", 2, "fp32", {})
        assert (first.revision, second.revision, new) == (1, 1, True)
        assert first.generation != second.generation

    async def test_some_that_make_the_same_one_at_once_make_one(self, database: Database) -> None:
        endpoint = name()

        async def put(version: int) -> tuple[int, bool]:
            async with database.write() as session:
                made, new = await EndpointWriter(session).put(endpoint, "m", version, "fp32", {})
                return made.revision, new

        made = await asyncio.gather(*(put(version) for version in range(1, 9)))
        assert sorted(made) == [(1, True), *((revision, False) for revision in range(2, 9))]

    async def test_one_of_another_model_is_taken_over_only_on_purpose(self, database: Database) -> None:
        endpoint = name()
        async with database.write() as session:
            await EndpointWriter(session).put(endpoint, "m", 1, "fp32", {})
        async with database.write() as session:
            with pytest.raises(Conflict, match=f"'{endpoint}' serves another model"):
                await EndpointWriter(session).put(endpoint, "other", 2, "fp32", {}, take_over=False)
            same, _ = await EndpointWriter(session).put(endpoint, "m", 3, "fp32", {}, take_over=False)
        assert (same.model, same.version, same.revision) == ("m", 3, 2)

    async def test_it_is_what_it_was_until_it_is_changed_or_made_anew(self, database: Database) -> None:
        endpoint = name()
        async with database.write() as session:
            first, _ = await EndpointWriter(session).put(endpoint, "m", 1, "fp32", {})
        async with database.write() as session:
            assert await EndpointWriter(session).is_still(first)
            second, _ = await EndpointWriter(session).put(endpoint, "m", 2, "fp32", {})
            assert not await EndpointWriter(session).is_still(first)
        async with database.write() as session:
            assert await EndpointWriter(session).is_still(second)
            await EndpointWriter(session).delete(endpoint)
            assert not await EndpointWriter(session).is_still(second)
            await EndpointWriter(session).put(endpoint, "m", 1, "fp32", {})
            assert not await EndpointWriter(session).is_still(first)


class TestErrors:
    @pytest.fixture
    async def server(self, postgres_url: str) -> AsyncIterator[Database]:
        server = Database(postgres_url)
        yield server
        await server.close()

    async def raised(self, server: Database, state: str) -> Exception | None:
        """What becomes of an error with this SQLSTATE."""
        try:
            async with server.write() as session:
                await session.execute(text(f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{state}'; END $$"))
        except Exception as error:  # noqa: BLE001 - which one is the question
            return error
        return None

    @pytest.mark.parametrize("state", ["08006", "40001", "40P01", "53100", "53300", "55P03", "57P01", "57P03"])
    async def test_what_passes_is_unavailable(self, server: Database, state: str) -> None:
        assert isinstance(await self.raised(server, state), Unavailable)

    async def test_more_at_once_than_there_are_connections_are_unavailable(self, registry_url: str) -> None:
        server = Database(registry_url, DatabaseSettings(pool_size=1, lock_timeout_s=0.1))
        async with AsyncExitStack() as held:
            for _ in range(10 if server.is_sqlite else 2):
                await held.enter_async_context(server.read())
            with pytest.raises(Unavailable, match="AIMASS_DATABASE_POOL_SIZE"):
                await held.enter_async_context(server.read())
        async with server.read():
            pass
        await server.close()

    @pytest.mark.parametrize("state", ["22P05", "23505", "42601", "55000"])
    async def test_what_is_wrong_stays_as_it_is(self, server: Database, state: str) -> None:
        assert isinstance(await self.raised(server, state), DBAPIError)


class TestKeys:
    async def test_the_secret_is_found_until_revoked_and_never_stored(self, database: Database) -> None:
        async with database.write() as session:
            key, secret = await KeyWriter(session).create("ci", ["read"])
        async with database.read() as session:
            reader = KeyReader(session)
            found = await reader.find(secret)
            assert found is not None
            assert (found.id, found.scopes) == (key.id, ("read",))
            assert await reader.find(secret + "x") is None
        async with database.write() as session:
            await KeyWriter(session).revoke(key.id)
        async with database.read() as session:
            assert await KeyReader(session).find(secret) is None


class TestIdempotency:
    async def test_the_second_request_gets_what_the_first_made(self, database: Database) -> None:
        key_id, key = new_id(), new_id()
        async with database.write() as session:
            assert await replay(session, key_id, key, "f" * 64) is None
            await remember(session, key_id, key, "made")
        async with database.write() as session:
            assert await replay(session, key_id, key, "f" * 64) == "made"
        async with database.write() as session:
            with pytest.raises(IdempotencyMismatch):
                await replay(session, key_id, key, "0" * 64)

    async def test_of_many_at_once_only_one_creates(self, database: Database) -> None:
        key_id, key, made = new_id(), new_id(), []

        async def create() -> str:
            async with database.write() as session:
                found = await replay(session, key_id, key, "f" * 64)
                if found is None:
                    made.append(new_id())
                    await asyncio.sleep(0.01)
                    await remember(session, key_id, key, made[-1])
                    return made[-1]
                return found

        answers = await asyncio.gather(*(create() for _ in range(10)))
        assert len(made) == 1
        assert set(answers) == {made[0]}


class TestJobs:
    async def test_10_jobs_are_paged_newest_first(self, database: Database) -> None:
        model = name()
        async with database.write() as session:
            ids = [(await JobLedger(session).enqueue(NewJob(kind="train", spec={}, model=model))).id for _ in range(10)]
        seen: list[str] = []
        cursor: str | None = None
        for _ in range(4):
            async with database.read() as session:
                page = await JobReader(session).page(3, cursor, model=model)
            seen += [job.id for job in page.items]
            cursor = page.next_cursor
        assert seen == ids[::-1]
        assert cursor is None

    async def test_a_backoff_is_bounded_also_after_many_attempts_that_were_given_back(self, database: Database) -> None:
        async with database.write() as session:
            ledger = JobLedger(session)
            job = await ledger.enqueue(NewJob(kind="train", spec={}))
            for attempt in range(1, 41):
                assert await ledger.claim(job.id, "w", 30.0)
                assert await ledger.release(job.id, attempt)
            assert await ledger.claim(job.id, "w", 30.0)
            assert await ledger.fail(job.id, 41, JobFailure("job_crashed", "killed", retryable=True), 5.0)
            told = (await ledger.events(job.id, 0))[-1].data
        assert (told["state"], told["retry_in_s"]) == ("queued", 300.0)


class TestMigrations:
    async def test_processes_that_start_at_once_migrate_once(
        self, request: pytest.FixtureRequest, tmp_path: Path, registry_url: str
    ) -> None:
        if registry_url.startswith("sqlite"):
            url = f"sqlite:///{tmp_path / 'new.db'}"
        else:
            url = await asyncio.to_thread(empty_database, request.getfixturevalue("postgres_url"))
        command = [sys.executable, "-m", "app.cli.main", "migrate"]
        environment = os.environ | {"AIMASS_DATABASE_URL": url, "AIMASS_DATA_DIR": str(tmp_path)}
        started = [await asyncio.create_subprocess_exec(*command, env=environment) for _ in range(4)]
        assert [await process.wait() for process in started] == [0, 0, 0, 0]
        database = Database(url)
        async with database.read() as session:
            assert await KeyReader(session).count() == 0
        await database.close()

    async def test_the_models_and_the_migrations_agree(self, registry_url: str) -> None:
        def differences(connection: Connection) -> list[Any]:
            return compare_metadata(MigrationContext.configure(connection), Base.metadata)

        engine = create_async_engine(async_url(registry_url))
        async with engine.connect() as connection:
            assert await connection.run_sync(differences) == []
        await engine.dispose()
