"""A peer's processes: started in a session of their own, and gone afterwards."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from bench.load import Server
from bench.peers import setup
from bench.peers.peer import Launch, Peer
from tests.support.servers import free_port

_START_S = 120.0
_STOP_S = 15.0
_PORTS = 5


class StartFailed(Exception):
    """A server did not listen in time, or ended."""


@contextlib.contextmanager
def running(peer: Peer, models: Path, model: str = "") -> Iterator[Server]:
    """The peer's server, once something listens; StartFailed with the last line of its log otherwise."""
    folder = setup.WORK / "run" / peer.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    python = setup.environment(peer.name) if peer.installed else Path(sys.executable)
    launch = Launch(python, folder, models, [free_port() for _ in range(_PORTS)], model)
    if peer.prepare is not None:
        peer.prepare(launch)
    log = setup.WORK / "log" / f"{peer.name}.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("w") as output:
        process = subprocess.Popen(
            peer.command(launch),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=folder,
            env=_environment(peer, launch),
            start_new_session=True,
        )
    try:
        _wait(process, launch.ports[0], log)
        yield Server(f"http://127.0.0.1:{launch.ports[0]}", psutil.Process(process.pid))
    finally:
        _stop(process)


def _environment(peer: Peer, launch: Launch) -> dict[str, str]:
    own = {name: value.format(folder=launch.folder) for name, value in peer.environment.items()}
    path = f"{launch.python.parent}:{os.environ['PATH']}"  # some start others by name
    return os.environ | {"PATH": path} | launch.environment | own


def _wait(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    how = "does not listen" if process.poll() is None else f"ended with {process.returncode}"
    raise StartFailed(f"{how}: {setup.last_line(log)}")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM for the first, then SIGKILL for whatever it started and left."""
    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
        _, left = psutil.wait_procs(started, timeout=1)
        for child in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    if process.poll() is None:
        process.kill()
    process.wait(_STOP_S)
