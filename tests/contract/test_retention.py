"""Old jobs, and what of them stays, on SQLite and on PostgreSQL."""

import asyncio

import pytest

from app.core.errors import NotFound
from app.core.ids import new_id
from app.core.jobs import JobFailure, MetricPoint, NewJob, Progress
from app.core.resources import StoredFile
from app.registry.datasets import DatasetWriter
from app.registry.files import add_files, files_of
from app.registry.job_retention import ended_jobs, forget_job
from app.registry.jobs import JobReader
from app.registry.ledger import SqlLedger
from app.registry.models import ModelWriter
from app.registry.session import Database
from tests.contract.test_registry import result

WRONG = JobFailure("invalid_data", "bad input")


async def told(database: Database, lines: int = 3, **changes: object) -> str:
    """A job that runs and has told something of everything."""
    ledger = SqlLedger(database)
    job = await ledger.enqueue(NewJob(kind="train", spec={"a": 1}, **changes))  # type: ignore[arg-type]
    assert await ledger.claim(job.id, "w", 30.0)
    points = [MetricPoint("loss", step, 1.0, 1e9) for step in range(lines)]
    log = [{"level": "info", "message": str(number)} for number in range(lines)]
    assert await ledger.progress(job.id, 1, Progress(0.5, "half"), points, log)
    return job.id


async def succeeded(database: Database, **changes: object) -> str:
    job_id = await told(database, **changes)
    assert await SqlLedger(database).succeed(job_id, 1, {"version": 1})
    return job_id


async def history(database: Database, job_id: str) -> int:
    async with database.read() as session:
        jobs = JobReader(session)
        return len(await jobs.events(job_id, 0)) + len(await jobs.metrics(job_id))


async def is_there(database: Database, job_id: str) -> bool:
    async with database.read() as session:
        return bool(await JobReader(session).get_all([job_id]))


async def trained(database: Database, job_id: str) -> str:
    """A model with one version, made by the job; its name."""
    model = f"n-{new_id()}"
    async with database.write() as session:
        lineage = {"dataset": "d@1", "job": job_id}
        files = [StoredFile("model.onnx", "c" * 64, 5)]
        await ModelWriter(session).create_version(
            model, result(), lineage=lineage, digest="f" * 64, files=files, dataset_version_id=None, job_id=job_id
        )
    return model


async def test_an_old_job_goes_with_all_that_it_has_told(database: Database) -> None:
    job_id = await succeeded(database)
    assert await SqlLedger(database).remove_ended(3600.0) == 0
    assert await SqlLedger(database).remove_ended(-1.0) >= 1
    assert (await is_there(database, job_id), await history(database, job_id)) == (False, 0)
    with pytest.raises(NotFound):
        await SqlLedger(database).get(job_id)


async def test_the_record_of_a_job_stays_for_as_long_as_its_model_version(database: Database) -> None:
    job_id = await succeeded(database)
    model = await trained(database, job_id)
    assert await SqlLedger(database).remove_ended(-1.0) == 1
    job = await SqlLedger(database).get(job_id)
    assert (job.state, job.spec, job.result) == ("succeeded", {"a": 1}, {"version": 1})
    assert await history(database, job_id) == 0
    assert await SqlLedger(database).remove_ended(-1.0) == 0, "it is not looked at again and again"
    async with database.write() as session:
        await ModelWriter(session).delete(model, 1)
    assert await SqlLedger(database).remove_ended(-1.0) == 1
    assert not await is_there(database, job_id)


async def test_the_record_of_a_job_stays_for_as_long_as_its_data_set(database: Database) -> None:
    name = f"n-{new_id()}"
    job_id = await told(database)
    async with database.write() as session:
        datasets = DatasetWriter(session)
        version = await datasets.create(name, "auto", StoredFile("original", "a" * 64, 10), "data.csv")
        await datasets.attach_job(version.id, job_id)
    assert await SqlLedger(database).fail(job_id, 1, WRONG, 0.0)
    await SqlLedger(database).remove_ended(-1.0)
    assert (await is_there(database, job_id), await history(database, job_id)) == (True, 0)
    async with database.write() as session:
        await DatasetWriter(session).delete(name, 1, detach=False)
    await SqlLedger(database).remove_ended(-1.0)
    assert not await is_there(database, job_id)


async def test_a_long_history_goes_in_several_transactions(database: Database) -> None:
    job_id = await succeeded(database, lines=10)
    rows, left = await history(database, job_id), []
    done = False
    while not done:
        async with database.write() as session:
            done = await forget_job(session, job_id, rows=7)
        left.append(await history(database, job_id))
    assert left == [*range(rows - 7, 0, -7), 0]
    assert not await is_there(database, job_id)


async def test_two_that_look_at_once_are_in_nobodys_way(database: Database) -> None:
    job_ids = [await succeeded(database) for _ in range(10)]
    await asyncio.gather(*(SqlLedger(database).remove_ended(-1.0) for _ in range(3)))
    assert not any([await is_there(database, job_id) for job_id in job_ids])
    async with database.read() as session:
        assert not set(job_ids) & set(await ended_jobs(session, -1.0, 1000))


@pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled"])
async def test_a_checkpoint_goes_when_its_job_ends(database: Database, end: str) -> None:
    ledger, job_id = SqlLedger(database), await told(database)
    async with database.write() as session:
        await add_files(session, job_id, [StoredFile("state", "e" * 64, 5)])
    ends = {"succeeded": lambda: ledger.succeed(job_id, 1, {}), "failed": lambda: ledger.fail(job_id, 1, WRONG, 0.0),
            "cancelled": lambda: ledger.cancelled(job_id, 1)}  # fmt: skip
    assert await ends[end]()
    async with database.read() as session:
        assert await files_of(session, job_id) == ()


async def test_a_checkpoint_outlives_a_crash(database: Database) -> None:
    ledger, job_id = SqlLedger(database), await told(database)
    async with database.write() as session:
        await add_files(session, job_id, [StoredFile("state", "e" * 64, 5)])
    assert await ledger.fail(job_id, 1, JobFailure("job_crashed", "killed", retryable=True), 0.0)
    lease = await ledger.claim(job_id, "w", 30.0)
    assert lease is not None
    assert lease.checkpoint == {"state": "e" * 64}
