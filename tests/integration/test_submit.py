"""Jobs that are submitted at the same time: committed together, judged one by one; on SQLite and PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from app.core.errors import Conflict, IdempotencyMismatch, InvalidSpec
from app.core.ids import new_id
from app.core.jobs import Job, NewJob
from app.core.principal import Principal
from app.core.resources import StoredFile
from app.queue.memory import MemoryWake
from app.registry.datasets import DatasetWriter
from app.registry.job_ledger import JobLedger
from app.registry.jobs import JobReader
from app.registry.models import ModelWriter
from app.registry.session import Database, WriteSession
from app.services.idempotent import once
from app.services.platform import Platform
from app.services.submit_job import retry_job, submit_job
from app.settings import Settings
from app.specs.jobs import CompressSpec, TrainSpec
from app.store.local import LocalStore
from tests.support.databases import postgres_registry, sqlite_registry
from tests.support.jobs import quick

READY = {
    "kind": "tabular",
    "rows": 9,
    "columns": [{"name": name, "type": "number", "missing": 0, "unique": 2} for name in ("age", "diagnosis")],
    "warnings": [],
    "rejected_count": 0,
    "rejected_first": [],
}


@pytest.fixture(params=["sqlite", "postgresql"])
async def platform(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Platform]:
    if request.param == "sqlite":
        url = await asyncio.to_thread(sqlite_registry, tmp_path)
    else:
        url = await asyncio.to_thread(postgres_registry, request.getfixturevalue("postgres_url"))
    made = Platform(Settings(data_dir=tmp_path), Database(url), MemoryWake(), LocalStore(tmp_path / "store"))
    await add_dataset(made, "tumours")
    yield made
    await made.close()


async def add_dataset(platform: Platform, name: str) -> None:
    async with platform.database.write() as session:
        datasets = DatasetWriter(session)
        version = await datasets.create(name, "tabular", StoredFile("original", "a" * 64, 1), "a.csv")
        await datasets.attach_job(version.id, name)
        await datasets.ready(name, READY, [])


async def submit(platform: Platform, model: str, key: str | None = None, caller: str = "me", **changes: Any) -> Job:
    body = quick(model, **changes)
    principal = Principal(caller, caller, frozenset({"train"}))
    return await submit_job(platform, once(principal, key, "POST /jobs", body), TrainSpec.model_validate(body))


async def models(platform: Platform) -> list[str]:
    """Of all jobs, oldest first."""
    async with platform.database.read() as session:
        page = await JobReader(session).page(500, None)
    return [str(job.model) for job in reversed(page.items)]


def refused(answers: list[Any]) -> list[tuple[int, type]]:
    return [(i, type(answer)) for i, answer in enumerate(answers) if isinstance(answer, BaseException)]


async def test_each_is_accepted_or_refused_by_itself(platform: Platform) -> None:
    first = await submit(platform, "first")
    changes: list[dict[str, Any]] = [
        {},
        {"dataset": "nothing@1"},
        {"target": "nothing"},
        {"after": [first.id]},
        {"after": [first.id, "nothing"]},
        {"params": {"nothing": 1}},
        {"priority": 0},
    ]
    asked = [submit(platform, f"m{i}", f"k{i}", **change) for i, change in enumerate(changes)]
    answers: list[Any] = await asyncio.gather(*asked, return_exceptions=True)
    assert refused(answers) == [(i, InvalidSpec) for i in (1, 2, 4, 5)]
    assert [answers[4].errors[0].loc, answers[3].after] == [("after", 1), (first.id,)]
    assert await models(platform) == ["first", "m0", "m3", "m6"]
    async with platform.database.read() as session:
        jobs = JobReader(session)
        for answer in (answers[0], answers[3], answers[6]):
            assert await jobs.get(answer.id) == answer
            assert [event.data for event in await jobs.events(answer.id, 0)] == [{"state": "queued"}]
    assert (await submit(platform, "mended", "k1")).model == "mended", "a refused request uses up no key"


async def test_a_name_that_cannot_be_stored_is_refused_before_the_columns_are_known(platform: Platform) -> None:
    async with platform.database.write() as session:
        await DatasetWriter(session).create("new", "tabular", StoredFile("original", "a" * 64, 1), "a.csv")
    with pytest.raises(InvalidSpec) as caught:
        await submit(platform, "m", dataset="new@1", target="a\0b", features={"drop": ["c", "d\0"]})
    assert [error.loc for error in caught.value.errors] == [("target",), ("features", "drop", 1)]
    assert (await submit(platform, "m", dataset="new@1", target="any")).state == "queued"


async def test_one_key_makes_one_job(platform: Platform) -> None:
    wanted = [("same", "k"), ("same", "k"), ("other", "k"), ("free", None), ("same", "k"), ("free", None)]
    asked = [submit(platform, model, key) for model, key in wanted]
    asked.append(submit(platform, "theirs", "k", "they"))
    answers: list[Any] = await asyncio.gather(*asked, return_exceptions=True)
    assert refused(answers) == [(2, IdempotencyMismatch)]
    assert answers[0] == answers[1] == answers[4]
    assert sorted(await models(platform)) == ["free", "free", "same", "theirs"]
    assert (await submit(platform, "same", "k")).id == answers[0].id


async def test_a_second_request_is_judged_by_itself_when_the_first_is_refused(platform: Platform) -> None:
    asked = [submit(platform, "first", "k", target="nothing"), submit(platform, "second", "k")]
    answers: list[Any] = await asyncio.gather(*asked, return_exceptions=True)
    assert refused(answers) == [(0, InvalidSpec)]
    assert (answers[1].model, await models(platform)) == ("second", ["second"])


async def test_a_replay_outlives_what_the_request_named(platform: Platform) -> None:
    await add_dataset(platform, "short-lived")
    job = await submit(platform, "m", "k", dataset="short-lived@1")
    async with platform.database.write() as session:
        await DatasetWriter(session).delete("short-lived", 1, detach=True)
    assert (await submit(platform, "m", "k", dataset="short-lived@1")).id == job.id
    with pytest.raises(InvalidSpec, match="no data set"):
        await submit(platform, "m", "another", dataset="short-lived@1")


async def test_two_gateways_with_the_same_keys(platform: Platform) -> None:
    """They meet in opposite orders, and neither waits for ever nor makes a job twice."""
    url = platform.database._write.url.render_as_string(hide_password=False)
    other = Platform(platform.settings, Database(url), platform.wake, platform.store)
    keys = [f"k{i}" for i in range(20)]
    for _ in range(3):
        here = [submit(platform, key, key) for key in keys]
        there = [submit(other, key, key) for key in reversed(keys)]
        answers = await asyncio.gather(*here, *there)
        assert [job.id for job in answers[:20]] == [job.id for job in reversed(answers[20:])]
    assert sorted(await models(platform)) == sorted(keys)
    await other.database.close()


async def test_an_imported_model_is_not_compressed_and_its_job_is_not_retried(
    platform: Platform,
) -> None:
    async with platform.database.write() as session:
        job = await JobLedger(session).enqueue(NewJob(kind="import", spec={"upload": new_id()}, model="theirs"))
        await ModelWriter(session).create_version(
            "theirs",
            {"task": "inference", "family": "imported", "main_metric": "", "metrics": {}, "signature": {}, "schema": {}}
            | {"variants": []},
            lineage={"dataset": None, "job": job.id},
            digest="f" * 64,
            files=[],
            dataset_version_id=None,
            job_id=job.id,
        )
        await JobLedger(session).cancel(job.id)
    request = once(Principal("me", "me", frozenset({"train"})), None, "", None)
    with pytest.raises(InvalidSpec, match="was imported"):
        await submit_job(platform, request, CompressSpec(kind="compress", model="theirs", version=1))
    with pytest.raises(Conflict, match="upload the file again"):
        await retry_job(platform, request, job.id)


async def test_callers_that_go_away_hurt_no_other(platform: Platform) -> None:
    tasks = [asyncio.create_task(submit(platform, f"m{i}")) for i in range(30)]
    for turn in range(10):
        await asyncio.sleep(0)
        tasks[3 * turn].cancel()
    answers: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
    assert {i for i, _ in refused(answers)} <= set(range(0, 30, 3))
    queued = await models(platform)
    assert len(queued) == len(set(queued))
    assert {f"m{i}" for i in range(30) if i % 3} <= set(queued)


async def test_a_job_that_the_database_does_not_take_spoils_no_other(platform: Platform) -> None:
    """The second breaks a rule of the schema, when the first is already written."""

    async def work(session: WriteSession, names: Sequence[str]) -> list[str | Exception]:
        for name in names:
            job = await JobLedger(session).enqueue(NewJob(kind="train", spec={}, model=name))
            if name == "bad":
                twice = "INSERT INTO job_after (job_id, after_id) VALUES (:id, :id), (:id, :id)"
                await session.execute(text(twice), {"id": job.id})
        return list(names)

    asked = [platform.database.together(work, name) for name in ("a", "bad", "b")]
    answers: list[Any] = await asyncio.gather(*asked, return_exceptions=True)
    assert [answers[0], answers[2]] == ["a", "b"]
    assert refused(answers) == [(1, IntegrityError)]
    assert await models(platform) == ["a", "b"]
