"""The worker agent: claims jobs for one device, runs them one at a time, and stops without losing any.

python -m workers.agent
"""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Awaitable, Callable

from app.core.errors import AimassError, Misconfigured, Unavailable
from app.core.jobs import DeviceClass
from app.core.process import die_with_parent
from app.queue.ports import CANCEL_CHANNEL
from app.registry.ledger import SqlLedger
from app.registry.workers import register, seen, unregister
from app.services.check_settings import check_settings
from app.services.platform import Platform, open_platform
from app.services.reconcile import reconcile_queue, sweep
from app.settings import Settings
from app.telemetry.log import configure_logging
from workers.own_folder import OwnFolder
from workers.run_job import JobRun
from workers.supervisor import Supervisor

log = logging.getLogger("aimass.agent")
PAUSE_S = 1.0  # after a failure
IDLE_POLL_S = 2.0  # an idle agent looks at the registry this often, should a wake-up be lost
SWEEP_EVERY = 60  # reconciliations


class Agent:
    """One device slot."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._settings = platform.settings
        # An agent with a GPU also takes jobs that run anywhere.
        self._devices: tuple[DeviceClass, ...] = ("cpu",) if self._settings.worker.device == "cpu" else ("cuda", "cpu")
        self._id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._ledger = SqlLedger(platform.database)
        self._threads = self._settings.worker.threads or len(os.sched_getaffinity(0))
        self._draining = asyncio.Event()
        self._run: JobRun | None = None
        self._folder = OwnFolder(platform.scratch / "jobs", self._id)
        self._turns = 0  # reconciliations since the last sweep
        lease_s = self._settings.queue.lease_s
        self._supervisor = Supervisor(
            self._folder.path,
            device=self._settings.worker.device,
            threads=self._threads,
            silence_s=lease_s,
            warm=self._settings.worker.spare,
        )

    def drain(self) -> None:
        """Take no more jobs; let the running one write a checkpoint and give it back."""
        self._draining.set()
        if self._run is not None:
            self._run.interrupt("drain")

    async def run(self) -> None:
        """Until drained."""
        async with self._platform.database.write() as session:
            await register(session, self._id, socket.gethostname(), os.getpid(), self._settings.worker.device)
        await self._supervisor.replenish()
        log.info("worker %s is ready on %s", self._id, self._settings.worker.device)
        side = [
            asyncio.create_task(_guarded("cancels", self._follow_cancels)),
            asyncio.create_task(_guarded("reconcile", self._reconcile)),
        ]
        try:
            while not self._draining.is_set():
                try:
                    await self._one_job()
                except AimassError as error:  # the store is away, say: the next job would fare no better
                    log.warning("worker %s: %s", self._id, error.detail)
                    await self._pause(error.retry_after_s or PAUSE_S)
                except Exception:
                    log.exception("worker %s goes on", self._id)
                    await self._pause(PAUSE_S)
        finally:
            for task in side:
                task.cancel()
            await asyncio.gather(*side, return_exceptions=True)
            await self._supervisor.close()
            await asyncio.to_thread(self._folder.remove)
            with contextlib.suppress(AimassError):  # it is forgotten in time
                async with self._platform.database.write() as session:
                    await unregister(session, self._id)

    async def _one_job(self) -> None:
        async with self._platform.database.write() as session:
            await seen(session, self._id, None)
        job_id = await self._next_job()
        if job_id is None or self._draining.is_set():
            return
        lease = await self._ledger.claim(job_id, self._id, self._settings.queue.lease_s)
        if lease is None:  # somebody else was faster, or it was cancelled
            return
        log.info("job=%s attempt=%d kind=%s starts", lease.job_id, lease.attempt, lease.kind)
        self._run = JobRun(
            self._platform, self._supervisor, lease, self._folder.path, worker=self._id, threads=self._threads
        )
        if self._draining.is_set():
            self._run.interrupt("drain")
        try:
            await self._run.run()
        finally:
            self._run = None
        log.info("job=%s attempt=%d ended", lease.job_id, lease.attempt)

    async def _next_job(self) -> str | None:
        """An announced job, else what the registry has."""
        try:
            announced = asyncio.ensure_future(self._platform.wake.next(self._devices, IDLE_POLL_S))
            draining = asyncio.ensure_future(self._draining.wait())
            await asyncio.wait({announced, draining}, return_when=asyncio.FIRST_COMPLETED)
            draining.cancel()
            if not announced.done():
                announced.cancel()
                return None
            job_id = announced.result()
        except Unavailable:
            await self._pause(PAUSE_S)
            job_id = None
        return job_id or await self._ledger.next_ready(self._devices)

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._draining.wait(), seconds)
        except TimeoutError:
            return

    async def _follow_cancels(self) -> None:
        async for _, job_id in self._platform.wake.listen(CANCEL_CHANNEL):
            if self._run is not None and job_id == self._run.job_id:
                self._run.interrupt("cancel")

    async def _reconcile(self) -> None:
        while True:
            await asyncio.sleep(self._settings.queue.reconcile_s)
            await asyncio.to_thread(self._folder.touch)  # first: also while the registry is away
            self._turns += 1  # counted on after a failure, which must not put the next sweep off
            await reconcile_queue(self._platform)
            if self._turns >= SWEEP_EVERY:
                self._turns = 0
                await asyncio.to_thread(self._folder.sweep)
                await sweep(self._platform)


async def _guarded(name: str, step: Callable[[], Awaitable[None]]) -> None:
    """Run a side task for ever: a failure is logged and it starts again."""
    while True:
        try:
            await step()
        except AimassError as error:
            log.warning("%s: %s", name, error.detail)
        except Exception:
            log.exception("%s failed", name)
        await asyncio.sleep(1.0)


async def run_agent(settings: Settings) -> None:
    """The composition root."""
    platform = open_platform(settings)
    try:
        agent = Agent(platform)
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, agent.drain)
        await agent.run()
    finally:
        await platform.close()


def main() -> None:
    """Die with the launcher, if there is one."""
    parent = os.environ.pop("AIMASS_LAUNCHER_PID", None)
    if parent:
        die_with_parent(int(parent))
    settings = Settings()
    configure_logging(settings.log_level)
    try:
        check_settings(settings)
        asyncio.run(run_agent(settings))
    except Misconfigured as error:
        sys.exit(f"aimass: {error.detail}")


if __name__ == "__main__":
    main()
