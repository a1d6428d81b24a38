"""A real platform for black-box tests: `aimass up` in a folder of its own, and a client of its API."""

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
from sklearn.datasets import load_breast_cancer

from tests.support.servers import wait_until

KEY = "test-key-for-the-platform"
FAST_WORKERS = {"AIMASS_WORKER_SPARE": "false", "AIMASS_WORKER_GRACE_S": "5"}
TERMINAL = {"succeeded", "failed", "cancelled"}


def breast_cancer_csv() -> bytes:
    """569 rows, 30 numeric columns and `diagnosis`."""
    data = load_breast_cancer()
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*data.feature_names, "diagnosis"])
    writer.writerows([*row, data.target_names[label]] for row, label in zip(data.data, data.target, strict=True))
    return text.getvalue().encode()


class Platform:
    """`with Platform() as platform:` — stopped with SIGTERM at the end, and nothing may be left."""

    def __init__(self, *, workers: int | None = 1, **settings: str) -> None:
        """`workers` None: as many as the launcher starts by itself, which is one for each GPU."""
        self.folder = Path(tempfile.mkdtemp(prefix="aim-"))
        self._workers = workers
        self._settings = {"AIMASS_GATEWAY_GRPC_PORT": "0", **FAST_WORKERS, **settings}
        self.output: list[str] = []
        self.process: subprocess.Popen[str]
        self._reader: threading.Thread | None = None
        self.client = httpx.Client()

    @property
    def data_dir(self) -> Path:
        """Where the platform keeps everything."""
        return self.folder / "data"

    def start(self) -> None:
        """Run the launcher and wait for its `ready` line."""
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith("AIMASS_")
        } | self._settings
        command = [
            str(Path(sys.executable).parent / "aimass"),
            "up",
            "--port",
            "0",
            "--data-dir",
            str(self.data_dir),
            "--api-key",
            KEY,
        ]
        if self._workers is not None:
            command += ["--workers", str(self._workers)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=self.folder
        )
        self._reader = threading.Thread(target=self._read_output, daemon=True)
        self._reader.start()
        wait_until(lambda: self.url is not None or self.process.poll() is not None, 120, "the platform starts")
        if self.url is None:
            self._reader.join(5)
            raise AssertionError("".join(self.output))
        self.client = httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60)

    def _read_output(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line)

    @property
    def url(self) -> str | None:
        """What the `ready` line says."""
        return next((line.split()[1] for line in self.output if line.startswith("ready ")), None)

    @property
    def grpc(self) -> str:
        """Where gRPC listens, as `host:port`."""
        return next(line.split("grpc://")[1].strip() for line in self.output if line.startswith("ready "))

    def stop(self) -> int:
        """SIGTERM; the launcher's exit status."""
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(60)
        if self._reader is not None:
            self._reader.join(5)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return status

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill_all()
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.stop()
            left = self.processes("")
            assert not left, f"left running: {left}"
        finally:
            if kind is not None:
                sys.stderr.write("".join(self.output[-100:]))
            self.kill_all()
            shutil.rmtree(self.folder, ignore_errors=True)

    def kill_all(self) -> None:
        """SIGKILL whatever still runs."""
        self.client.close()
        if hasattr(self, "process") and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for process in self.processes(""):
            process.kill()
        if self._reader is not None:
            self._reader.join(5)
            self.process.stdout.close()

    def processes(self, word: str) -> list[psutil.Process]:
        """Live processes of this platform whose command line holds `word`, oldest first."""
        found = []
        for process in psutil.process_iter(["cmdline", "environ", "status"]):
            command = " ".join(process.info["cmdline"] or [])
            mine = (process.info["environ"] or {}).get("AIMASS_DATA_DIR") == str(self.data_dir) or str(
                self.data_dir
            ) in command
            child = "workers.child" in command and _cwd(process).startswith(str(self.data_dir))
            if (mine or child) and word in command and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        return sorted(found, key=lambda p: p.create_time())

    def agents(self) -> list[psutil.Process]:
        """The worker agents."""
        return self.processes("workers.agent")

    def children(self) -> list[psutil.Process]:
        """The job children."""
        return self.processes("workers.child")

    def freeze(self, process: psutil.Process) -> None:
        """SIGSTOP, but not within a transaction: SQLite knows no lock that outlives its holder's silence.

        A try that fails is short and is followed by time to commit: an agent that is stopped in each of its beats loses
        its child before it is frozen.
        """

        def frozen() -> bool:
            process.send_signal(signal.SIGSTOP)
            with contextlib.closing(sqlite3.connect(self.data_dir / "registry.db", timeout=0.1)) as registry:
                try:
                    registry.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError:
                    process.send_signal(signal.SIGCONT)
                    time.sleep(0.3)
                    return False
                registry.rollback()
                return True

        wait_until(frozen, 30, "the process is frozen outside a transaction")

    # The API

    def call(self, method: str, path: str, status: int | None = None, **options: Any) -> Any:
        """The JSON of an answer, which must have this status (any success, if none is given)."""
        answer = self.client.request(method, path, **options)
        good = answer.is_success if status is None else answer.status_code == status
        assert good, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def upload(self, name: str, content: bytes, filename: str = "data.csv", **form: str) -> dict[str, Any]:
        """Upload and wait until the version is ready or has failed."""
        path = self.send(name, content, filename, **form)["links"]["self"]
        wait_until(lambda: self.call("GET", path)["state"] != "ingesting", 60, f"{name} is ingested")
        version: dict[str, Any] = self.call("GET", path)
        return version

    def send(self, name: str, content: bytes, filename: str = "data.csv", **form: str) -> dict[str, Any]:
        """Upload; the version as it is at once."""
        form = {"name": name, **form}
        version: dict[str, Any] = self.call(
            "POST", "/api/v1/datasets", 201, data=form, files={"file": (filename, content)}
        )
        return version

    def submit(self, status: int = 202, **spec: Any) -> dict[str, Any]:
        """Queue a job."""
        job: dict[str, Any] = self.call("POST", "/api/v1/jobs", status, json=spec)
        return job

    def job(self, job_id: str) -> dict[str, Any]:
        """The job now."""
        found: dict[str, Any] = self.call("GET", f"/api/v1/jobs/{job_id}")
        return found

    def wait(self, job_id: str, state: str = "", within_s: float = 120) -> dict[str, Any]:
        """The job once it is in this state, or in any terminal one."""
        deadline = time.monotonic() + within_s
        while True:
            job = self.job(job_id)
            if job["state"] == state or (not state and job["state"] in TERMINAL):
                return job
            wrong = job["state"] in TERMINAL
            if wrong or time.monotonic() > deadline:
                raise AssertionError(
                    f"job is {job['state']}, not {state or 'ended'}: {job['error']}\n{''.join(self.output[-40:])}"
                )
            time.sleep(0.05)

    def events(self, job_id: str, last_id: int = 0) -> list[tuple[int, str, dict[str, Any]]]:
        """Every event of a job that has ended (or ends while we listen)."""
        found: list[tuple[int, str, dict[str, Any]]] = []
        with self.client.stream(
            "GET", f"/api/v1/jobs/{job_id}/events", headers={"last-event-id": str(last_id)}
        ) as stream:
            frame: dict[str, str] = {}
            for line in stream.iter_lines():
                if line:
                    key, _, value = line.partition(": ")
                    frame[key] = value
                elif "id" in frame:
                    found.append((int(frame["id"]), frame["event"], json.loads(frame["data"])))
                    frame = {}
        return found

    def states(self, job_id: str) -> list[str]:
        """The states that an ended job has been in, in order."""
        return [data["state"] for _, kind, data in self.events(job_id) if kind == "state"]

    def logs(self, job_id: str) -> str:
        """The job's log as text."""
        return "\n".join(line["message"] for line in self.call("GET", f"/api/v1/jobs/{job_id}/logs")["items"])


def _cwd(process: psutil.Process) -> str:
    try:
        return process.cwd()
    except psutil.Error:
        return ""
