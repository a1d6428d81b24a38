"""The queue's promises, of the in-memory twin, SQLite and PostgreSQL."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from app.core.errors import InvalidSpec, NotFound
from app.core.ids import new_id
from app.core.jobs import Job, JobFailure, MetricPoint, NewJob, Progress
from app.queue.memory import MemoryLedger
from app.queue.ports import Ledger
from app.registry.ledger import SqlLedger
from app.registry.session import Database
from tests.support.databases import postgres_registry, sqlite_registry

CRASH = JobFailure("job_crashed", "killed", retryable=True)
WRONG = JobFailure("invalid_data", "bad input")
LEASE_S = 30.0


class Clock:
    """Virtual time for the twin; real time passes for the databases."""

    def __init__(self, *, virtual: bool) -> None:
        self._virtual = virtual
        self.now = 1e9

    async def advance(self, seconds: float) -> None:
        self.now += seconds
        if not self._virtual:
            await asyncio.sleep(seconds)


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def clock(request: pytest.FixtureRequest) -> Clock:
    return Clock(virtual=request.param == "memory")


@pytest.fixture
async def ledger(
    request: pytest.FixtureRequest, clock: Clock, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Ledger]:
    kind = request.node.callspec.params["clock"]
    if kind == "memory":
        yield MemoryLedger(lambda: clock.now)
        return
    if kind == "sqlite":
        url = await asyncio.to_thread(sqlite_registry, tmp_path_factory.mktemp("ledger"))
    else:
        url = await asyncio.to_thread(postgres_registry, request.getfixturevalue("postgres_url"))
    database = Database(url)
    yield SqlLedger(database)
    await database.close()


async def running(ledger: Ledger, **changes: object) -> Job:
    """A job that worker `w` has just claimed."""
    job = await ledger.enqueue(NewJob(kind="train", spec={"a": 1}, **changes))  # type: ignore[arg-type]
    assert await ledger.claim(job.id, "w", LEASE_S) is not None
    return await ledger.get(job.id)


class TestClaim:
    async def test_a_queued_job_is_claimed_once(self, ledger: Ledger) -> None:
        job = await ledger.enqueue(NewJob(kind="train", spec={"a": 1}, memory_mb=512, timeout_s=9.0))
        leases = await asyncio.gather(*(ledger.claim(job.id, f"w{i}", LEASE_S) for i in range(8)))
        won = [lease for lease in leases if lease is not None]
        assert len(won) == 1
        assert (won[0].attempt, won[0].kind, won[0].spec, won[0].memory_mb, won[0].timeout_s) == (
            1,
            "train",
            {"a": 1},
            512,
            9.0,
        )
        assert (await ledger.get(job.id)).state == "running"

    async def test_an_unknown_job_is_not_claimed(self, ledger: Ledger) -> None:
        assert await ledger.claim(new_id(), "w", LEASE_S) is None
        with pytest.raises(NotFound):
            await ledger.get(new_id())

    async def test_priority_comes_before_age_and_devices_are_kept_apart(self, ledger: Ledger) -> None:
        await ledger.enqueue(NewJob(kind="train", spec={}, priority=1))
        urgent = await ledger.enqueue(NewJob(kind="train", spec={}, priority=0))
        gpu = await ledger.enqueue(NewJob(kind="train", spec={}, priority=0, device="cuda"))
        assert await ledger.next_ready(["cpu"]) == urgent.id
        assert await ledger.next_ready(["cuda"]) == gpu.id
        assert await ledger.next_ready(["cuda", "cpu"]) == urgent.id


class TestEnqueueAll:
    async def test_each_is_taken_or_refused_by_itself_in_order(self, ledger: Ledger) -> None:
        first, failed = await running(ledger), await running(ledger)
        await ledger.fail(failed.id, 1, WRONG, 0.0)
        wanted = [
            NewJob(kind="train", spec={"n": 0}, priority=2, model="m"),
            NewJob(kind="train", spec={"n": 1}, after=(first.id, failed.id)),
            NewJob(kind="train", spec={"n": 2}, after=(first.id, first.id)),
            NewJob(kind="train", spec={"n": 3}, after=(new_id(),)),
            NewJob(kind="train", spec={"n": 4}, device="cuda", timeout_s=7.0),
        ]
        answers = await ledger.enqueue_all(wanted)
        jobs = [answer for answer in answers if isinstance(answer, Job)]
        assert [(job.spec["n"], job.priority, job.device, job.after) for job in jobs] == [
            (0, 2, "cpu", ()),
            (2, 1, "cpu", (first.id,)),
            (4, 1, "cuda", ()),
        ]
        assert [await ledger.get(job.id) for job in jobs] == jobs
        assert [job.id for job in jobs] == sorted(job.id for job in jobs)
        assert [answer.errors[0].loc for answer in answers if isinstance(answer, InvalidSpec)] == [
            ("after", 1),
            ("after", 0),
        ]
        assert await ledger.next_ready(["cpu"]) == jobs[0].id, "the refused would come first"

    async def test_none(self, ledger: Ledger) -> None:
        assert await ledger.enqueue_all([]) == []
        assert await ledger.next_ready(["cpu"]) is None


class TestFence:
    @pytest.mark.parametrize("write", ["heartbeat", "progress", "succeed", "fail", "release", "cancelled"])
    async def test_an_old_attempt_writes_nothing(self, ledger: Ledger, write: str) -> None:
        job = await running(ledger)
        assert await ledger.fail(job.id, 1, CRASH, backoff_s=0.0)
        lease = await ledger.claim(job.id, "w2", LEASE_S)
        assert lease is not None
        assert lease.attempt == 2
        writes: dict[str, Callable[[], Awaitable[object]]] = {
            "heartbeat": lambda: ledger.heartbeat(job.id, 1, LEASE_S),
            "progress": lambda: ledger.progress(
                job.id, 1, Progress(0.9, "late"), [MetricPoint("loss", 1, 1.0, 0.0)], []
            ),
            "succeed": lambda: ledger.succeed(job.id, 1, {"late": True}),
            "fail": lambda: ledger.fail(job.id, 1, CRASH, 0.0),
            "release": lambda: ledger.release(job.id, 1),
            "cancelled": lambda: ledger.cancelled(job.id, 1),
        }
        assert await writes[write]() in {False, "lost"}
        after = await ledger.get(job.id)
        assert (after.state, after.attempt, after.worker, after.result, after.progress) == (
            "running",
            2,
            "w2",
            None,
            Progress(),
        )

    async def test_only_one_of_two_finishes(self, ledger: Ledger) -> None:
        job = await running(ledger)
        answers = await asyncio.gather(ledger.succeed(job.id, 1, {"n": 1}), ledger.succeed(job.id, 1, {"n": 2}))
        assert sorted(answers) == [False, True]


class TestEnds:
    async def test_success_keeps_the_result(self, ledger: Ledger) -> None:
        job = await running(ledger)
        assert await ledger.succeed(job.id, 1, {"version": 3})
        after = await ledger.get(job.id)
        assert (after.state, after.result, after.progress.fraction) == ("succeeded", {"version": 3}, 1.0)
        assert after.finished_at is not None

    async def test_a_wrong_input_fails_at_once(self, ledger: Ledger) -> None:
        job = await running(ledger)
        assert await ledger.fail(job.id, 1, WRONG, backoff_s=0.0)
        after = await ledger.get(job.id)
        assert (after.state, after.error) == (
            "failed",
            {"code": "invalid_data", "detail": "bad input", "retryable": False},
        )

    async def test_crashes_are_tried_again_until_none_is_left(self, ledger: Ledger) -> None:
        job = await running(ledger, max_attempts=2)
        assert await ledger.fail(job.id, 1, CRASH, backoff_s=0.0)
        assert (await ledger.get(job.id)).state == "queued"
        assert await ledger.claim(job.id, "w", LEASE_S) is not None
        assert await ledger.fail(job.id, 2, CRASH, backoff_s=0.0)
        assert (await ledger.get(job.id)).state == "failed"

    async def test_a_crashed_job_waits_out_its_backoff(self, ledger: Ledger, clock: Clock) -> None:
        job = await running(ledger)
        assert await ledger.fail(job.id, 1, CRASH, backoff_s=0.5)
        assert await ledger.next_ready(["cpu"]) is None
        assert await ledger.claim(job.id, "w", LEASE_S) is None
        await clock.advance(0.6)
        assert await ledger.next_ready(["cpu"]) == job.id
        assert await ledger.claim(job.id, "w", LEASE_S) is not None

    async def test_a_released_job_is_due_at_once_and_keeps_its_tries(self, ledger: Ledger) -> None:
        job = await running(ledger, max_attempts=1)
        assert await ledger.release(job.id, 1)
        assert await ledger.claim(job.id, "w2", LEASE_S) is not None
        assert await ledger.release(job.id, 2)
        assert (await ledger.get(job.id)).state == "queued"

    async def test_a_job_that_is_given_back_for_later_is_due_then(self, ledger: Ledger, clock: Clock) -> None:
        job = await running(ledger, max_attempts=1)
        assert await ledger.release(job.id, 1, 0.5, "the store is away")
        assert await ledger.next_ready(["cpu"]) is None
        await clock.advance(0.6)
        assert await ledger.claim(job.id, "w", LEASE_S) is not None
        assert await ledger.fail(job.id, 2, CRASH, 0.0)
        assert (await ledger.get(job.id)).state == "failed", "the one attempt that it has"

    async def test_progress_is_kept(self, ledger: Ledger) -> None:
        job = await running(ledger)
        points = [MetricPoint("loss", 1, 0.5, time.time()), MetricPoint("loss", 1, 0.4, time.time())]
        assert await ledger.progress(
            job.id, 1, Progress(0.5, "epoch 1", 10.0), points, [{"level": "info", "message": "hi"}]
        )
        assert (await ledger.get(job.id)).progress == Progress(0.5, "epoch 1", 10.0)

    async def test_more_points_than_a_statement_may_hold_values(self, ledger: Ledger) -> None:
        """What a fast job has to tell after the registry was away."""
        job = await running(ledger)
        points = [MetricPoint("loss", step, 1 / (1 + step), 1e9) for step in range(10_000)]
        lines = [{"level": "info", "message": str(number)} for number in range(10_000)]
        assert await ledger.progress(job.id, 1, None, points, lines)
        assert await ledger.succeed(job.id, 1, {})


async def test_the_twin_bounds_the_backoff_too() -> None:
    clock = Clock(virtual=True)
    ledger = MemoryLedger(lambda: clock.now)
    job = await running(ledger)
    for attempt in range(1, 41):
        assert await ledger.release(job.id, attempt)
        assert await ledger.claim(job.id, "w", LEASE_S) is not None
    assert await ledger.fail(job.id, 41, CRASH, 5.0)
    await clock.advance(299.0)
    assert await ledger.next_ready(["cpu"]) is None
    await clock.advance(1.0)
    assert await ledger.next_ready(["cpu"]) == job.id


class TestLease:
    async def test_a_renewed_lease_does_not_expire(self, ledger: Ledger, clock: Clock) -> None:
        job = await ledger.enqueue(NewJob(kind="train", spec={}))
        await ledger.claim(job.id, "w", 0.4)
        await clock.advance(0.2)
        assert await ledger.heartbeat(job.id, 1, 10.0) == "held"
        await clock.advance(0.4)
        assert await ledger.expire(0.0) == 0
        assert (await ledger.get(job.id)).state == "running"

    async def test_an_expired_lease_queues_the_job_again(self, ledger: Ledger, clock: Clock) -> None:
        job = await ledger.enqueue(NewJob(kind="train", spec={}))
        await ledger.claim(job.id, "w", 0.1)
        await clock.advance(0.2)
        assert await ledger.expire(0.0) == 1
        assert await ledger.expire(0.0) == 0
        after = await ledger.get(job.id)
        assert (after.state, after.worker) == ("queued", None)
        assert await ledger.heartbeat(job.id, 1, LEASE_S) == "lost"

    async def test_the_last_expired_attempt_fails_the_job(self, ledger: Ledger, clock: Clock) -> None:
        job = await ledger.enqueue(NewJob(kind="train", spec={}, max_attempts=1))
        await ledger.claim(job.id, "w", 0.1)
        await clock.advance(0.2)
        await ledger.expire(0.0)
        after = await ledger.get(job.id)
        assert after.state == "failed"
        assert after.error is not None
        assert after.error["detail"] == "worker 'w' stopped answering"


class TestCancel:
    async def test_a_queued_job_is_cancelled_at_once(self, ledger: Ledger) -> None:
        job = await ledger.enqueue(NewJob(kind="train", spec={}))
        assert (await ledger.cancel(job.id)).state == "cancelled"
        assert await ledger.claim(job.id, "w", LEASE_S) is None

    async def test_a_running_job_is_told_by_its_heartbeat(self, ledger: Ledger) -> None:
        job = await running(ledger)
        assert (await ledger.cancel(job.id)).state == "running"
        assert await ledger.heartbeat(job.id, 1, LEASE_S) == "cancel"
        assert await ledger.cancelled(job.id, 1)
        assert (await ledger.get(job.id)).state == "cancelled"

    async def test_a_cancelled_job_that_crashes_is_not_tried_again(self, ledger: Ledger) -> None:
        job = await running(ledger)
        await ledger.cancel(job.id)
        assert await ledger.fail(job.id, 1, CRASH, 0.0)
        assert (await ledger.get(job.id)).state == "cancelled"

    async def test_a_cancelled_job_that_is_given_back_starts_nowhere_else(self, ledger: Ledger) -> None:
        job = await running(ledger)
        await ledger.cancel(job.id)
        assert await ledger.release(job.id, 1)
        assert (await ledger.get(job.id)).state == "cancelled"
        assert await ledger.next_ready(["cpu"]) is None

    async def test_an_ended_job_stays_as_it_is(self, ledger: Ledger) -> None:
        job = await running(ledger)
        await ledger.succeed(job.id, 1, {})
        assert (await ledger.cancel(job.id)).state == "succeeded"


class TestAfter:
    async def test_a_job_waits_for_those_before_it(self, ledger: Ledger) -> None:
        first, second = await running(ledger), await running(ledger)
        waiter = await ledger.enqueue(NewJob(kind="compress", spec={}, after=(first.id, second.id, first.id)))
        assert waiter.after == (first.id, second.id)
        assert await ledger.next_ready(["cpu"]) is None
        await ledger.succeed(first.id, 1, {})
        assert await ledger.claim(waiter.id, "w", LEASE_S) is None
        await ledger.succeed(second.id, 1, {})
        assert await ledger.next_ready(["cpu"]) == waiter.id
        assert await ledger.claim(waiter.id, "w", LEASE_S) is not None

    async def test_what_waits_for_a_failure_fails_down_the_chain(self, ledger: Ledger) -> None:
        first = await running(ledger)
        second = await ledger.enqueue(NewJob(kind="compress", spec={}, after=(first.id,)))
        third = await ledger.enqueue(NewJob(kind="compress", spec={}, after=(second.id,)))
        await ledger.fail(first.id, 1, WRONG, 0.0)
        for waiter, cause in ((second, first), (third, second)):
            after = await ledger.get(waiter.id)
            assert after.state == "failed"
            assert after.error is not None
            assert after.error["code"] == "dependency_failed"
            assert cause.id in after.error["detail"]

    async def test_waiting_for_a_job_that_is_unknown_or_failed_is_refused(self, ledger: Ledger) -> None:
        failed = await running(ledger)
        await ledger.fail(failed.id, 1, WRONG, 0.0)
        with pytest.raises(InvalidSpec, match="there is no job"):
            await ledger.enqueue(NewJob(kind="compress", spec={}, after=(new_id(),)))
        with pytest.raises(InvalidSpec, match="could never start"):
            await ledger.enqueue(NewJob(kind="compress", spec={}, after=(failed.id,)))


class TestAnnouncements:
    async def test_a_due_job_is_announced_once_per_interval(self, ledger: Ledger, clock: Clock) -> None:
        job = await ledger.enqueue(NewJob(kind="train", spec={}, priority=2))
        found = await ledger.unannounced(0.3)
        assert [(ready.job_id, ready.device, ready.priority) for ready in found] == [(job.id, "cpu", 2)]
        assert await ledger.unannounced(0.3) == []
        await clock.advance(0.4)
        assert [ready.job_id for ready in await ledger.unannounced(0.3)] == [job.id]

    async def test_jobs_that_are_not_due_are_not_announced(self, ledger: Ledger) -> None:
        first = await running(ledger)
        await ledger.enqueue(NewJob(kind="compress", spec={}, after=(first.id,)))
        assert await ledger.unannounced(0.0) == []


class TestRetention:
    async def test_only_jobs_that_ended_long_ago_are_removed_the_oldest_first(
        self, ledger: Ledger, clock: Clock
    ) -> None:
        ended = [await running(ledger) for _ in range(3)]
        assert await ledger.succeed(ended[0].id, 1, {})
        await clock.advance(0.05)
        assert await ledger.fail(ended[1].id, 1, WRONG, 0.0)
        await clock.advance(0.05)
        queued = await ledger.enqueue(NewJob(kind="train", spec={}))
        await ledger.cancel(queued.id)
        await clock.advance(0.5)
        assert await ledger.cancelled(ended[2].id, 1)
        alive = [await running(ledger), await ledger.enqueue(NewJob(kind="train", spec={}))]
        retried = await running(ledger)
        assert await ledger.fail(retried.id, 1, CRASH, 0.0)
        assert await ledger.remove_ended(0.4, limit=2) == 2
        assert await ledger.get(queued.id)
        assert await ledger.remove_ended(0.4) == 1
        assert await ledger.remove_ended(0.4) == 0
        for job in (ended[0], ended[1], queued):
            with pytest.raises(NotFound, match=job.id):
                await ledger.get(job.id)
            with pytest.raises(NotFound, match=job.id):
                await ledger.cancel(job.id)
        states = [(await ledger.get(job.id)).state for job in (ended[2], *alive, retried)]
        assert states == ["cancelled", "running", "queued", "queued"]

    async def test_what_waited_for_a_removed_job_is_not_held_up(self, ledger: Ledger, clock: Clock) -> None:
        first, second = await running(ledger), await running(ledger)
        waiter = await ledger.enqueue(NewJob(kind="compress", spec={}, after=(first.id, second.id)))
        assert await ledger.succeed(first.id, 1, {})
        await clock.advance(0.05)
        assert await ledger.remove_ended(0.0) == 1
        assert (await ledger.get(waiter.id)).after == (second.id,)
        assert await ledger.next_ready(["cpu"]) is None
        assert await ledger.succeed(second.id, 1, {})
        assert await ledger.claim(waiter.id, "w", LEASE_S) is not None
        with pytest.raises(InvalidSpec, match="there is no job"):
            await ledger.enqueue(NewJob(kind="compress", spec={}, after=(first.id,)))
