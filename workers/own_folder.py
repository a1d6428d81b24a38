"""The folder that an agent's jobs work in; what agents that were killed have left beside it is removed.

A lock, which the kernel lets go of with its holder, tells the living from the dead, in other containers too. Where it
may not be seen (by another machine, or through another mount) a folder is left alone until its agent has not touched it
for a day.
"""

import contextlib
import fcntl
import os
import shutil
from pathlib import Path
from typing import BinaryIO

LOCK = "lock"
ABANDONED_S = 86_400.0
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class OwnFolder:
    """A new folder for one agent, locked for as long as the agent's process lives."""

    def __init__(self, parent: Path, worker_id: str) -> None:
        self.path = parent / worker_id
        self.path.mkdir(parents=True)
        self._lock = (self.path / LOCK).open("wb", buffering=0)
        with contextlib.suppress(OSError):  # a file system without locks, or a full one: it is left alone for a day
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self._lock.write(_reach(self._lock.fileno()))
        self.sweep()

    def touch(self) -> None:
        """Show agents that cannot see the lock that this one lives."""
        os.utime(self._lock.fileno())

    def sweep(self) -> None:
        """Remove the folders of agents that were killed."""
        self.touch()
        at = os.fstat(self._lock.fileno()).st_mtime  # by the file system's clock, as those that it is compared with
        for other in self.path.parent.iterdir():
            if other != self.path and _abandoned(other, at):
                shutil.rmtree(other, ignore_errors=True)

    def remove(self) -> None:
        """The agent ends."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _abandoned(folder: Path, at: float) -> bool:
    try:
        with (folder / LOCK).open("r+b") as lock:
            idle_s = at - os.fstat(lock.fileno()).st_mtime
            return _seen_free(lock) or idle_s > ABANDONED_S
    except FileNotFoundError:  # its agent was killed before it had a lock, or it is being removed
        with contextlib.suppress(FileNotFoundError):
            return at - folder.stat().st_mtime > ABANDONED_S
    except OSError:  # locked, or not for us to judge
        pass
    return False


def _seen_free(lock: BinaryIO) -> bool:
    """True if its holder has ended; False if that cannot be seen from here. BlockingIOError if it lives."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        return False
    reach = _reach(lock.fileno())
    return bool(reach) and lock.read() == reach


def _reach(file: int) -> bytes:
    """Where a lock on this file is seen: under one kernel, by one mount. Nothing if the kernel has no name."""
    boot = _BOOT.read_text().strip() if _BOOT.exists() else ""
    return f"{boot} {os.fstat(file).st_dev}".encode() if boot else b""
