"""Starts job children, keeps a warm one in reserve, and ends them for certain."""

import asyncio
import contextlib
import os
import signal
import sys
import threading
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from workers.protocol import MAX_LINE_BYTES, ChildEvent, parse_event

# What a child may see of its agent's environment: nothing that leads to the registry, Redis or the store.
_HIDDEN = ("AIMASS_", "AWS_", "PG", "REDIS_")
ALIVE = b"\0"


@dataclass(slots=True)
class Child:
    """One process group: its event pipe, the pipe it hears its agent on, the file of its standard error."""

    process: Process
    events: asyncio.StreamReader
    voice: int
    errors: Path
    _speaking: threading.Lock = field(default_factory=threading.Lock)

    @property
    def pid(self) -> int:
        """Also the id of its process group."""
        return self.process.pid

    def start(self, folder: Path) -> None:
        """Hand over a job."""
        self._tell(os.fsencode(folder) + b"\n")

    def sign_of_life(self) -> None:
        """Tell the child that its agent is alive."""
        self._tell(ALIVE)

    def _tell(self, message: bytes) -> None:
        # Written directly, since signs of life come from the heartbeat's thread. A full pipe means a busy child.
        with self._speaking, contextlib.suppress(OSError):
            os.write(self.voice, message)

    async def read_events(self) -> AsyncIterator[ChildEvent]:
        """Events until the pipe closes. Lines that are no events are passed over."""
        while True:
            try:
                line = await self.events.readline()
            except ValueError:  # longer than the limit: not ours
                continue
            if not line:
                return
            if event := parse_event(line):
                yield event

    def signal(self, sig: signal.Signals) -> None:
        """Signal the whole process group; one that has gone is no error."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, sig)

    async def end(self, grace_s: float) -> None:
        """SIGTERM, `grace_s` to write a checkpoint, then SIGKILL to the group; returns when the child is gone."""
        if self.process.returncode is None and grace_s > 0:
            self.signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.process.wait(), grace_s)
        self.signal(signal.SIGKILL)  # also what the child has started itself
        await self.process.wait()
        with self._speaking:  # a sign of life must not go to whatever has this number next
            if self.voice >= 0:
                os.close(self.voice)
                self.voice = -1

    def forget(self) -> None:
        """Remove what it wrote to its standard error."""
        self.errors.unlink(missing_ok=True)

    def memory_bytes(self) -> int:
        """Resident memory of the child and all that it started, bytes; shared pages are counted once each."""
        total = 0
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(self.pid)
            for process in (root, *root.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    total += process.memory_info().rss
        return total

    def last_errors(self, lines: int = 20) -> list[str]:
        """The end of its standard error."""
        with contextlib.suppress(OSError):
            return self.errors.read_text(errors="replace").splitlines()[-lines:]
        return []


class Supervisor:
    """Hands out children. Use it in the main thread's event loop: a child dies with the thread that spawned it."""

    def __init__(self, folder: Path, *, device: str, threads: int, silence_s: float, warm: bool) -> None:
        self._folder = folder
        self._device = device
        self._threads = threads
        self._silence_s = silence_s
        self._warm = warm
        self._spare: Child | None = None
        self._count = 0

    async def take(self) -> Child:
        """The warm child if it lives, else a new one."""
        spare, self._spare = self._spare, None
        if spare is not None and spare.process.returncode is None:
            return spare
        return await self._spawn(preload=False)

    async def replenish(self) -> None:
        """Have a warm child in reserve, if one is wanted."""
        if self._warm and (self._spare is None or self._spare.process.returncode is not None):
            self._spare = await self._spawn(preload=True)

    async def close(self) -> None:
        """End the reserve."""
        if self._spare is not None:
            await self._spare.end(0)
            self._spare.forget()
            self._spare = None

    async def _spawn(self, *, preload: bool) -> Child:
        reading, writing = os.pipe()
        hearing, voice = os.pipe()
        os.set_blocking(voice, False)
        self._count += 1
        errors = self._folder / f"child-{os.getpid()}-{self._count}.err"
        command = [sys.executable, "-m", "workers.child", "--agent", str(os.getpid()), "--events", str(writing)]
        command += ["--silence", str(self._silence_s), *(["--preload"] if preload else [])]
        try:
            with errors.open("wb") as stderr:
                process = await asyncio.create_subprocess_exec(
                    *command, stdin=hearing, stdout=DEVNULL, stderr=stderr, pass_fds=(writing,), start_new_session=True,
                    cwd=self._folder, env=self._environment(),
                )  # fmt: skip
        finally:
            os.close(writing)
            os.close(hearing)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb"))
        return Child(process, reader, voice, errors)

    def _environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(_HIDDEN)}
        threads = str(self._threads)
        if self._device != "cuda":  # without a number, all that this process may see
            kept["CUDA_VISIBLE_DEVICES"] = self._device.removeprefix("cpu").removeprefix("cuda:")
        return kept | {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "POLARS_MAX_THREADS": threads,
        }
