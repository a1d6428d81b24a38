"""SIGTERM to a worker whose job has not begun: its inputs are still being laid out."""

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from app.specs.data import DATA_FILE
from tests.faults.conftest import SHORT
from tests.support.jobs import quick
from tests.support.platform import FAST_WORKERS, Platform, breast_cancer_csv
from tests.support.servers import wait_until


@pytest.fixture(scope="module")
def idle() -> Iterator[Platform]:
    """A platform without workers, but for those that a test starts."""
    with Platform(workers=0, **SHORT) as running:
        with agent(running):
            assert running.upload("tumours", breast_cancer_csv())["state"] == "ready"
        yield running


@contextmanager
def agent(platform: Platform) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {"AIMASS_DATA_DIR": str(platform.data_dir), **FAST_WORKERS, **SHORT}
    process = subprocess.Popen([sys.executable, "-m", "workers.agent"], env=environment)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def table(platform: Platform) -> Path:
    """Where the store keeps what jobs read of `tumours`."""
    with closing(sqlite3.connect(platform.data_dir / "registry.db")) as registry:
        [(digest,)] = registry.execute("SELECT sha256 FROM files WHERE path = ?", (DATA_FILE,)).fetchall()
    return platform.data_dir / "store" / digest[:2] / digest[2:4] / digest


@contextmanager
def endless(blob: Path) -> Iterator[threading.Event]:
    """In place of a file of the store one without an end, that comes slowly; set once it is being read."""
    aside, reading, over = blob.with_suffix(".aside"), threading.Event(), threading.Event()
    blob.rename(aside)
    os.mkfifo(blob)

    def feed() -> None:
        with suppress(BrokenPipeError), blob.open("wb", buffering=0) as pipe:
            while not over.is_set():
                pipe.write(bytes(1 << 16))
                reading.set()
                time.sleep(0.01)

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        yield reading
    finally:
        over.set()
        with suppress(OSError):  # if nobody has opened it, it waits for that
            os.close(os.open(blob, os.O_RDONLY | os.O_NONBLOCK))
        feeder.join()
        aside.replace(blob)


def test_a_job_whose_inputs_are_being_laid_out_is_given_back_at_once(idle: Platform) -> None:
    with agent(idle) as worker, endless(table(idle)) as reading:
        job = idle.submit(**quick("given-back"))
        assert reading.wait(60)
        worker.terminate()
        assert worker.wait(30) == 0  # it would not end before the file does
        now = idle.job(job["id"])
        assert (now["state"], now["attempt"]) == ("queued", 1)
        assert not list((idle.data_dir / "jobs").iterdir())
    with agent(idle):
        idle.wait(job["id"], "succeeded", 60)
    assert idle.states(job["id"]) == ["queued", "running", "queued", "running", "succeeded"]
    assert "attempt 1 has started" not in idle.logs(job["id"])


def test_a_job_is_cancelled_while_its_inputs_are_being_laid_out(idle: Platform) -> None:
    with agent(idle), endless(table(idle)) as reading:
        job = idle.submit(**quick("cancelled-early"))
        assert reading.wait(60)
        idle.call("POST", f"/api/v1/jobs/{job['id']}/cancel", 202)
        idle.wait(job["id"], "cancelled", 30)
        wait_until(lambda: not list((idle.data_dir / "jobs").glob("*/*-1")), 10, "nothing is left of it")
