"""Runs one leased job from start to end: folder, child, events, outcome."""

import asyncio
import contextlib
import logging
import shutil
import time
from pathlib import Path
from typing import Any, Literal

from app.core.errors import AimassError, Unavailable
from app.core.jobs import JobFailure, Lease
from app.registry.ledger import SqlLedger
from app.services.announce import announce_due, tell_watchers
from app.services.fetch_source import fetch_source
from app.services.finish_job import finish_job
from app.services.keep_files import InputAway, Known
from app.services.lay_out_job import disk_of, lay_out_job
from app.services.platform import Platform
from app.services.save_checkpoint import save_checkpoint
from app.store.disk import writing
from workers.failures import crashed, internal, timed_out, too_large
from workers.lease import Heartbeat
from workers.protocol import ChildEvent
from workers.supervisor import Child, Supervisor
from workers.told import Told

log = logging.getLogger("aimass.job")
FLUSH_S = 0.25
FLUSH_ROWS = 10_000  # points, and lines, that a transaction takes: all of a long outage would be too many
WATCH_MEMORY_S = 0.25
SETTLE_AGAIN_S = 2.0  # while the registry or the store cannot take the outcome, and then twice as long each time
SETTLE_AGAIN_MOST_S = 60.0
SETTLE_MOST_S = 3600.0  # then it is the outcome that they cannot take, as one that is larger than the disk
SETTLE_DRAINED_S = 5.0  # for so long when the agent is to stop
GIVE_BACK_S = 60.0  # longer than an agent pauses, so that another job has its turn first; more after each time
GIVE_BACK_MOST = 20  # attempts, after which it is the job that cannot be run here, as one that is larger than the disk
CANCEL_GRACE_S = 0.3  # a cancelled job's checkpoint is of no use to anyone

Interruption = Literal["lost", "cancel", "drain", "timeout", "memory"]


class JobRun:
    """One attempt. `interrupt` may be called from any thread, and the first reason given counts."""

    def __init__(
        self, platform: Platform, supervisor: Supervisor, lease: Lease, folder: Path, *, worker: str, threads: int
    ) -> None:
        self._platform = platform
        self._supervisor = supervisor
        self._lease = lease
        self._threads = threads
        self._worker = worker
        self._ledger = SqlLedger(platform.database)
        self._loop = asyncio.get_running_loop()
        self._interrupted: asyncio.Future[Interruption] = self._loop.create_future()
        self._asked: set[Interruption] = set()  # also what came after the first
        self._news = asyncio.Event()  # something was asked
        self._told = Told()
        self._kept_checkpoint = False
        self._checkpoint: Known = {}
        self._outcome: ChildEvent | None = None
        self._failure: JobFailure | None = None  # of our side of the job
        self._away: Unavailable | None = None  # why no job can be run here now
        self._folder = folder / f"{lease.job_id}-{lease.attempt}"

    @property
    def job_id(self) -> str:
        """Which job this is."""
        return self._lease.job_id

    def interrupt(self, why: Interruption) -> None:
        """Stop the job."""
        self._loop.call_soon_threadsafe(self._set_interrupted, why)

    def _set_interrupted(self, why: Interruption) -> None:
        self._asked.add(why)
        self._news.set()
        if not self._interrupted.done():
            self._interrupted.set_result(why)

    async def run(self) -> None:
        """To the end, whatever it is.

        Unavailable, once the job was given back, when this machine, the store or the registry cannot run any job now.
        """
        child = await self._take_child()
        heartbeat = Heartbeat(
            self._platform.settings,
            self._worker,
            on_lost=lambda: self.interrupt("lost"),
            on_cancel=lambda: self.interrupt("cancel"),
            on_beat=child.sign_of_life,
        )
        heartbeat.start(self._lease.job_id, self._lease.attempt)
        try:
            await self._settle(await self._attempt(child), child)
        finally:
            await child.end(0)
            child.forget()
            heartbeat.close()
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
            await tell_watchers(self._platform, self._lease.job_id)
            await self._supervisor.replenish()
        if self._away is not None:
            raise self._away

    async def _take_child(self) -> Child:
        try:
            with writing(disk_of(self._folder.parent)):
                return await self._supervisor.take()
        except Unavailable as error:
            await self._give_back(error)
            raise

    async def _attempt(self, child: Child) -> Interruption | None:
        """Do the job; why it was interrupted, if it was. What went wrong on our side of it is noted."""
        try:
            if not await self._prepared():
                return self._interrupted.result()
            return await self._supervise(child)
        except InputAway as error:  # this job's own trouble: an attempt is used up
            self._failure = JobFailure.of(error)
        except Unavailable as error:
            if self._lease.attempt > GIVE_BACK_MOST:
                self._failure = JobFailure.of(error)
            else:
                self._away = error
        except AimassError as error:
            self._failure = JobFailure.of(error)
        except Exception as error:  # our own mistake, say: the job fails, the agent lives
            log.exception("job=%s attempt=%d could not be run", self.job_id, self._lease.attempt)
            self._failure = internal(error)
        return None

    async def _prepare(self) -> None:
        await fetch_source(self._platform, self._lease)
        await lay_out_job(self._platform, self._lease, self._folder, self._threads)

    async def _prepared(self) -> bool:
        """True once all that the job needs is in its folder; False if it was interrupted first, and is not to start."""
        preparing = asyncio.create_task(self._prepare(), name="prepare")
        try:
            ends: set[asyncio.Future[Any]] = {preparing, self._interrupted}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if self._interrupted.done():
                return False
            preparing.result()
            return True
        finally:
            preparing.cancel()
            await asyncio.gather(preparing, return_exceptions=True)

    async def _supervise(self, child: Child) -> Interruption | None:
        """Why it was interrupted, if it was."""
        child.start(self._folder)
        listening = asyncio.create_task(self._listen(child), name="listen")
        over = asyncio.Event()
        flushing = asyncio.create_task(self._flush_until(over), name="flush")
        watching = asyncio.create_task(self._watch_limits(child), name="limits")
        try:
            ends: set[asyncio.Future[Any]] = {listening, self._interrupted}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            why = self._interrupted.result() if self._interrupted.done() else None
            await child.end(self._grace_s(why))
            await listening  # what it told before it went
        finally:
            watching.cancel()
            listening.cancel()
            over.set()  # not cancelled: what it has taken in hand must reach the registry
            await asyncio.gather(listening, flushing, watching, return_exceptions=True)
        return why

    def _grace_s(self, why: Interruption | None) -> float:
        if self._outcome is not None:
            return 0.0  # it has told its end; what an interpreter full of libraries does then takes a second
        if why == "drain" or why is None:
            return self._platform.settings.worker.grace_s
        return CANCEL_GRACE_S if why == "cancel" else 0.0

    async def _listen(self, child: Child) -> None:
        """Until the child closes its pipe; its last word is the outcome."""
        async for event in child.read_events():
            if event.event not in {"result", "error", "stopped"}:
                self._told.note(event, self._lease.attempt)
                continue
            self._outcome = event
            if event.event != "stopped":
                return

    async def _flush_until(self, over: asyncio.Event) -> None:
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), FLUSH_S)
            try:
                await self._flush()
            except Unavailable:
                continue  # told again when the registry is back
            except Exception:  # a checkpoint that changes while it is stored, say
                log.exception("job=%s attempt=%d: not all could be told", self._lease.job_id, self._lease.attempt)

    async def _flush(self) -> None:
        told, self._told = self._told.split(FLUSH_ROWS)
        if told == Told():
            return
        lease = self._lease
        try:
            held = True
            if told.progress or told.points or told.log:
                held = await self._ledger.progress(lease.job_id, lease.attempt, told.progress, told.points, told.log)
            if held and told.checkpoint:
                held = await save_checkpoint(self._platform, lease, self._folder / "checkpoint", self._checkpoint)
                self._note_checkpoint()
        except Exception:
            told.add(self._told)
            self._told = told
            raise
        if not held:
            self.interrupt("lost")
        await tell_watchers(self._platform, lease.job_id)

    async def _flush_last(self, *, with_checkpoint: bool) -> None:
        """Tell what is left; a checkpoint that cannot be stored holds up no end that can do without it."""
        try:
            await self._flush_all()
        except Unavailable:
            if with_checkpoint or not self._told.checkpoint:
                raise
            self._told.checkpoint = False
            await self._flush_all()

    async def _flush_all(self) -> None:
        while self._told != Told():
            await self._flush()

    def _note_checkpoint(self) -> None:
        """Say once that a crash no longer means starting over."""
        if not self._kept_checkpoint:
            self._kept_checkpoint = True
            self._told.log.append({"level": "info", "message": "a checkpoint is kept", "at": time.time()})

    async def _watch_limits(self, child: Child) -> None:
        deadline = time.monotonic() + self._lease.timeout_s
        limit = self._lease.memory_mb << 20
        while True:
            await asyncio.sleep(WATCH_MEMORY_S)
            if time.monotonic() > deadline:
                self.interrupt("timeout")
            elif await asyncio.to_thread(child.memory_bytes) > limit:
                self.interrupt("memory")

    async def _settle(self, why: Interruption | None, child: Child) -> None:
        """Write the outcome, again and again while the registry or the store is away: it may have taken hours to make.

        Every write is fenced: False means that the lease was lost and nothing was written.
        """
        begun, wait_s = time.monotonic(), SETTLE_AGAIN_S
        stopping_since: float | None = None
        written = False
        while why != "lost":
            try:
                written = await self._write_outcome(why, child)
                break
            except Unavailable as error:
                log.warning("job=%s attempt=%d waits to be settled: %s", self.job_id, self._lease.attempt, error.detail)
                if time.monotonic() - begun > SETTLE_MOST_S and self._away is None:
                    self._failure = self._failure or JobFailure.of(error)
            except Exception as error:
                if self._failure is not None:  # that cannot be written either
                    raise
                log.exception("job=%s attempt=%d could not be settled", self.job_id, self._lease.attempt)
                self._failure = JobFailure.of(error) if isinstance(error, AimassError) else internal(error)
                continue
            await self._pause(wait_s)
            wait_s = min(2 * wait_s, SETTLE_AGAIN_MOST_S)
            why = self._asked_meanwhile(why)
            if "drain" in self._asked:
                wait_s = SETTLE_AGAIN_S  # whoever stops the agent waits for it
                stopping_since = stopping_since or time.monotonic()
                if time.monotonic() - stopping_since >= SETTLE_DRAINED_S:
                    written = await self._ledger.release(self.job_id, self._lease.attempt)
                    break
        if not written:
            log.warning("job=%s attempt=%d lost its lease; nothing was written", self.job_id, self._lease.attempt)

    async def _pause(self, seconds: float) -> None:
        """Wait, unless something else is asked of the job."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), seconds)
        self._news.clear()

    def _asked_meanwhile(self, why: Interruption | None) -> Interruption | None:
        """What has become of the job while its outcome could not be written: lost, or no longer wanted."""
        if "lost" in self._asked:
            return "lost"
        if "cancel" in self._asked:
            self._outcome, self._told = None, Told()
            return "cancel"
        return why

    async def _write_outcome(self, why: Interruption | None, child: Child) -> bool:
        lease, told = self._lease, self._outcome
        if self._away is not None:
            return await self._give_back(self._away)
        if self._failure is not None:
            return await self._fail(self._failure)
        resumed = (why == "drain" and told is None) or (told is not None and told.event == "stopped")
        await self._flush_last(with_checkpoint=resumed)
        if told is not None and told.event == "result":
            return await finish_job(self._platform, lease, told.data["result"], self._folder / "output")
        if why == "cancel":
            return await self._ledger.cancelled(lease.job_id, lease.attempt)
        if resumed:
            released = await self._ledger.release(lease.job_id, lease.attempt)
            await announce_due(self._platform)
            return released
        return await self._fail(await self._why_failed(why, child))

    async def _why_failed(self, why: Interruption | None, child: Child) -> JobFailure:
        lease, told = self._lease, self._outcome
        if told is not None and told.event == "error":
            error = told.data
            return JobFailure(error["code"], error["detail"], bool(error["retryable"]), tuple(error["errors"]))
        if why == "timeout":
            return timed_out(lease)
        if why == "memory":
            return too_large(lease)
        lines = [{"level": "error", "message": line} for line in child.last_errors()]
        if lines:
            await self._ledger.progress(lease.job_id, lease.attempt, None, [], lines)
        return crashed(child.process.returncode)

    async def _fail(self, failure: JobFailure) -> bool:
        backoff_s = self._platform.settings.queue.backoff_s
        return await self._ledger.fail(self._lease.job_id, self._lease.attempt, failure, backoff_s)

    async def _give_back(self, away: Unavailable) -> bool:
        """Queue the job again, for later; the attempt does not count."""
        wait_s = GIVE_BACK_S * min(self._lease.attempt, 10)
        return await self._ledger.release(self.job_id, self._lease.attempt, wait_s, away.detail)
