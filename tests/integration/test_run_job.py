"""One attempt of a job on a real registry and store that come and go, with a child that tells what it is told to."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.core.errors import AimassError, Unavailable
from app.core.jobs import JobEvent, Lease, MetricPoint, NewJob
from app.core.resources import StoredFile
from app.registry.files import add_files, files_of
from app.registry.jobs import JobReader
from app.registry.ledger import SqlLedger
from app.registry.session import Database, WriteSession
from app.services import keep_files
from app.services.keep_files import InputAway, keep_file
from app.services.lay_out_job import lay_out_job
from app.services.platform import Platform
from app.services.save_checkpoint import save_checkpoint
from workers import agent as agents
from workers import run_job
from workers.agent import Agent
from workers.protocol import ChildEvent
from workers.run_job import GIVE_BACK_S, JobRun
from workers.training.files import write_atomically

RESULT = {"same": True}
AWAY = Unavailable("the store is away", retry_after_s=7.0)


class Blinking:
    """A registry that does not take the next `failures` transactions."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.failures = 0

    def read(self) -> Any:
        return self._database.read()

    def write(self) -> AbstractAsyncContextManager[WriteSession]:
        if self.failures:
            self.failures -= 1
            raise Unavailable("the registry is away")
        return self._database.write()


class FakeChild:
    """Ends at once with a result; `at_end` is called just before."""

    def __init__(self, at_end: Callable[[], None]) -> None:
        self._at_end = at_end

    def start(self, folder: Path) -> None:
        (folder / "output" / "report.json").write_text("{}")

    async def read_events(self) -> AsyncIterator[ChildEvent]:
        self._at_end()
        yield ChildEvent("result", 1.0, {"result": RESULT})

    async def end(self, _grace_s: float) -> None:
        pass

    def sign_of_life(self) -> None:
        pass

    def memory_bytes(self) -> int:
        return 0

    forget = sign_of_life


class FakeSupervisor:
    def __init__(self, child: FakeChild | OSError) -> None:
        self._child = child

    async def take(self) -> FakeChild:
        if isinstance(self._child, OSError):
            raise self._child
        return self._child

    async def replenish(self) -> None:
        pass


class FakeHeartbeat:
    def __init__(self, *_: object, **__: object) -> None:
        pass

    def start(self, *_: object) -> None:
        pass

    close = start


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time passes between two tries, no thread, and the job's folder is as the child needs it."""

    async def lay_out(_platform: Platform, _lease: Lease, folder: Path, _threads: int) -> None:
        (folder / "output").mkdir(parents=True)

    monkeypatch.setattr(run_job, "lay_out_job", lay_out)
    monkeypatch.setattr(run_job, "Heartbeat", FakeHeartbeat)
    monkeypatch.setattr(run_job, "SETTLE_AGAIN_S", 0.0)
    monkeypatch.setattr(run_job, "SETTLE_DRAINED_S", 0.0)


def is_away(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception = AWAY) -> None:
    """What the attempt calls by this name raises the error."""

    async def away(*_: object) -> None:
        raise error

    monkeypatch.setattr(run_job, name, away)


async def claim(platform: Platform) -> Lease:
    ledger = SqlLedger(platform.database)
    job = await ledger.enqueue(NewJob(kind="reproduce", spec={"model": "m", "version": 1}, max_attempts=1))
    lease = await ledger.claim(job.id, "w", 30.0)
    assert lease is not None
    return lease


def attempt(
    platform: Platform, lease: Lease, at_end: Callable[[], None] = lambda: None, error: OSError | None = None
) -> JobRun:
    supervisor: Any = FakeSupervisor(error or FakeChild(at_end))
    return JobRun(platform, supervisor, lease, platform.scratch / "jobs", worker="w", threads=1)


async def last_state(platform: Platform, job_id: str) -> JobEvent:
    async with platform.database.read() as session:
        return [event for event in await JobReader(session).events(job_id, 0) if event.type == "state"][-1]


async def test_a_result_outlives_an_outage_of_the_registry(platform: Platform) -> None:
    database: Any = Blinking(platform.database)
    blinking = replace(platform, database=database)
    lease = await claim(platform)

    def go_away() -> None:
        database.failures = 20

    await attempt(blinking, lease, go_away).run()
    job = await SqlLedger(platform.database).get(lease.job_id)
    assert (job.state, job.attempt, job.result) == ("succeeded", 1, {"model": "m", "version": 1, **RESULT})
    assert database.failures == 0


@pytest.mark.parametrize(
    ("asked", "state", "tries"), [("cancel", "cancelled", 2), ("drain", "queued", 2), ("lost", "running", 2)]
)
async def test_a_job_that_waits_to_be_settled_can_be_stopped(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, asked: run_job.Interruption, state: str, tries: int
) -> None:
    lease, tried = await claim(platform), 0
    run = attempt(platform, lease)

    async def finish(*_: object) -> bool:
        nonlocal tried
        tried += 1
        if tried == tries:
            run._set_interrupted(asked)
        raise AWAY

    monkeypatch.setattr(run_job, "finish_job", finish)
    async with asyncio.timeout(60):
        await run.run()
    assert ((await SqlLedger(platform.database).get(lease.job_id)).state, tried) == (state, tries)


@pytest.mark.parametrize(("asked", "state"), [("cancel", "cancelled"), ("drain", "queued"), ("lost", "running")])
async def test_who_stops_a_job_that_waits_to_be_settled_does_not_wait_with_it(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, asked: run_job.Interruption, state: str
) -> None:
    monkeypatch.setattr(run_job, "SETTLE_AGAIN_S", 3600.0)
    lease = await claim(platform)
    run = attempt(platform, lease)

    async def finish(*_: object) -> bool:
        asyncio.get_running_loop().call_later(0.01, run._set_interrupted, asked)
        raise AWAY

    monkeypatch.setattr(run_job, "finish_job", finish)
    async with asyncio.timeout(60):
        await run.run()
    assert (await SqlLedger(platform.database).get(lease.job_id)).state == state


async def test_a_store_that_is_away_uses_up_no_attempt(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    is_away(monkeypatch, "lay_out_job")
    lease = await claim(platform)
    with pytest.raises(Unavailable) as raised:
        await attempt(platform, lease).run()
    assert raised.value is AWAY
    ledger = SqlLedger(platform.database)
    job = await ledger.get(lease.job_id)
    assert (job.state, job.max_attempts) == ("queued", 2)
    told = {"state": "queued", "reason": "the store is away", "retry_in_s": GIVE_BACK_S}
    assert (await last_state(platform, lease.job_id)).data == told
    assert await ledger.next_ready(["cpu"]) is None


async def test_what_was_given_back_often_uses_up_attempts(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that passes, then: it is larger than the disk, say."""
    is_away(monkeypatch, "lay_out_job")
    monkeypatch.setattr(run_job, "GIVE_BACK_MOST", 0)
    lease = await claim(platform)
    await attempt(platform, lease).run()
    assert (await SqlLedger(platform.database).get(lease.job_id)).state == "failed"


async def test_an_outcome_that_can_never_be_stored_fails_the_job(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_away(monkeypatch, "finish_job")
    monkeypatch.setattr(run_job, "SETTLE_MOST_S", -1.0)
    lease = await claim(platform)
    async with asyncio.timeout(60):
        await attempt(platform, lease).run()
    job = await SqlLedger(platform.database).get(lease.job_id)
    assert (job.state, (job.error or {})["detail"]) == ("failed", AWAY.detail)


async def test_a_checkpoint_that_cannot_be_stored_does_not_hold_up_a_result(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_away(monkeypatch, "save_checkpoint")
    lease = await claim(platform)
    run = attempt(platform, lease)
    run._told.checkpoint = True
    async with asyncio.timeout(60):
        await run.run()
    assert (await SqlLedger(platform.database).get(lease.job_id)).state == "succeeded"


async def test_much_that_was_told_while_the_registry_was_away_is_passed_on_in_parts(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_job, "FLUSH_ROWS", 2)
    lease = await claim(platform)
    run, parts = attempt(platform, lease), list[tuple[int, int]]()
    progress = run._ledger.progress

    async def note(job_id: str, number: int, told: Any, points: Any, log: Any) -> bool:
        parts.append((len(points), len(log)))
        return await progress(job_id, number, told, points, log)

    monkeypatch.setattr(run._ledger, "progress", note)
    run._told.points += [MetricPoint("loss", step, 1.0, 1.0) for step in range(5)]
    run._told.log += [{"level": "info", "message": str(number)} for number in range(3)]
    await run.run()
    assert parts == [(2, 2), (2, 1), (1, 0)]
    async with platform.database.read() as session:
        jobs = JobReader(session)
        assert [point.step for point in await jobs.metrics(lease.job_id)] == [*range(5)]
        assert [event.data["message"] for event in await jobs.logs(lease.job_id, 10)] == ["0", "1", "2"]
        assert (await jobs.get(lease.job_id)).state == "succeeded"


async def test_files_of_a_checkpoint_that_have_not_changed_are_not_copied_again(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, known, copied = await claim(platform), {}, list[str]()  # type: Lease, Known, list[str]
    keep = keep_files.keep_file

    async def counted(platform: Platform, source: Path, path: str) -> StoredFile:
        copied.append(path)
        return await keep(platform, source, path)

    monkeypatch.setattr(keep_files, "keep_file", counted)
    (folder := tmp_path / "checkpoint").mkdir()
    for name in ("large", "small", "gone"):
        (folder / name).write_text(name)
    assert not await save_checkpoint(platform, replace(lease, attempt=2), folder, known)  # which is not its own
    assert not known  # for nothing names the files, and they may be swept
    copied.clear()
    assert await save_checkpoint(platform, lease, folder, known)
    write_atomically(folder / "small", b"other")  # as many bytes as before
    (folder / "gone").unlink()
    assert await save_checkpoint(platform, lease, folder, known)
    assert copied == ["gone", "large", "small", "small"]
    async with platform.database.read() as session:
        files = {file.path: file.sha256 for file in await files_of(session, lease.job_id)}
    assert {path: b"".join([part async for part in platform.store.read(digest)]) for path, digest in files.items()} == {
        "large": b"large", "small": b"other",
    }  # fmt: skip


async def test_an_input_that_is_away_uses_up_an_attempt(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    is_away(monkeypatch, "lay_out_job", InputAway("the store does not have it"))
    lease = await claim(platform)
    await attempt(platform, lease).run()
    job = await SqlLedger(platform.database).get(lease.job_id)
    assert (job.state, job.error) == (
        "failed",
        {"code": "unavailable", "detail": "the store does not have it", "retryable": True},
    )


async def test_a_child_that_cannot_be_started_for_want_of_room_gives_the_job_back(platform: Platform) -> None:
    lease = await claim(platform)
    with pytest.raises(Unavailable, match=r"AIMASS_DATA_DIR.*No space left"):
        await attempt(platform, lease, error=OSError(28, "No space left on device")).run()
    job = await SqlLedger(platform.database).get(lease.job_id)
    assert (job.state, job.max_attempts) == ("queued", 2)


async def test_an_outcome_that_cannot_be_written_fails_the_job(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_away(monkeypatch, "finish_job", RuntimeError("unheard of"))
    lease = await claim(platform)
    await attempt(platform, lease).run()
    job = await SqlLedger(platform.database).get(lease.job_id)
    assert (job.state, (job.error or {})["code"]) == ("failed", "internal")


async def upload(platform: Platform, lease: Lease, folder: Path) -> StoredFile:
    """What an import job asks for."""
    (folder / "model.onnx").write_bytes(b"model")
    file = await keep_file(platform, folder / "model.onnx", "model.onnx")
    async with platform.database.write() as session:
        await add_files(session, lease.spec["upload"], [file])
    return file


@pytest.mark.parametrize(
    ("broken", "kind", "word"),
    [
        ("content", InputAway, "an input of this job"),
        ("store", Unavailable, "not mounted"),
        ("disk", Unavailable, "AIMASS_DATA_DIR"),
    ],
)
async def test_what_a_job_needs_and_this_machine_cannot_give(
    platform: Platform, tmp_path: Path, broken: str, kind: type[AimassError], word: str
) -> None:
    lease = Lease("job", 1, "import", {"upload": "upload"}, 60.0, 100)
    file = await upload(platform, lease, tmp_path)
    folder = tmp_path / "jobs"
    if broken == "content":
        await platform.store.delete(file.sha256)
    elif broken == "store":
        await asyncio.to_thread(shutil.rmtree, tmp_path / "store")
    else:
        folder.write_text("no folder")
    with pytest.raises(kind, match=word) as raised:
        await lay_out_job(platform, lease, folder / "job-1", 1)
    assert type(raised.value) is kind


async def test_an_agent_goes_on_after_any_error_and_pauses_as_long_as_it_says(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, pauses = Agent(platform), list[float]()
    errors = [RuntimeError("unheard of"), AWAY]

    async def one_job() -> None:
        if not errors:
            agent.drain()
            return
        raise errors.pop(0)

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    async def nothing() -> None:
        pass

    monkeypatch.setattr(agent, "_one_job", one_job)
    monkeypatch.setattr(agent, "_pause", pause)
    monkeypatch.setattr(agent._supervisor, "replenish", nothing)
    async with asyncio.timeout(60):
        await agent.run()
    assert pauses == [agents.PAUSE_S, 7.0]
