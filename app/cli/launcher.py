"""`aimass up`: starts every process of the platform on this machine, starts again what dies, and stops all of it.

Start order: the port, Redis, migrations, gateway, workers; it is ready when each gateway has loaded its endpoints,
however long that takes. Stop order: workers (they give their jobs back), gateway,
Redis.
"""

import asyncio
import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import httpx

from app.cli.prepare import first_key
from app.cli.valkey import check_socket_path, find_server, server_command
from app.core.errors import Misconfigured
from app.registry.migrate import upgrade
from app.services.check_settings import check_settings
from app.services.platform import open_platform
from app.settings import Settings
from app.telemetry.log import configure_logging

log = logging.getLogger("aimass.launcher")
TICK_S = 0.1
READY_WITHIN_S = 120.0  # unless endpoints are being loaded
TELL_S = 5.0  # between two lines on what is waited for
RESTART_WAIT_S = (0.0, 0.5, 1.0, 2.0, 5.0)  # after a crash; a process that has run for a while starts from the front
STEADY_S = 30.0
HOPELESS = 3  # crashes of a gateway that was never ready


@dataclass(frozen=True, slots=True)
class Options:
    """The command line; None leaves the setting as it is."""

    host: str | None = None
    port: int | None = None
    data_dir: Path | None = None
    workers: int | None = None
    api_key: str | None = None
    embedded: bool = True

    def environment(self) -> dict[str, str]:
        """The options as environment variables, for every child alike."""
        given = {"AIMASS_GATEWAY_HOST": self.host, "AIMASS_GATEWAY_PORT": self.port, "AIMASS_DATA_DIR": self.data_dir}
        return {name: str(value) for name, value in given.items() if value is not None}


@dataclass(slots=True)
class Child:
    """A process that is to run for as long as the launcher does."""

    name: str
    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    pass_fds: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    crashes: int = 0  # one soon after the other
    ends: int = 0  # in all
    start_at: float = 0.0

    def start(self) -> None:
        """Spawn it; from the main thread, since it dies with the thread that spawned it."""
        environment = {**os.environ, **self.environment, "AIMASS_LAUNCHER_PID": str(os.getpid())}
        environment.pop("AIMASS_API_KEY", None)
        self.process = subprocess.Popen(self.command, env=environment, pass_fds=self.pass_fds, stdin=subprocess.DEVNULL)  # noqa: S603 - our own modules
        self.started = time.monotonic()

    def check(self) -> None:
        """Start it again if it has died: at once, later after repeated crashes."""
        now = time.monotonic()
        if self.process is None:
            if now >= self.start_at:
                self.start()
            return
        code = self.process.poll()
        if code is None:
            return
        self.ends += 1
        self.crashes = 1 if now - self.started > STEADY_S else self.crashes + 1
        wait_s = RESTART_WAIT_S[min(self.crashes, len(RESTART_WAIT_S)) - 1]
        log.warning("%s ended with status %d; starting it again in %g s", self.name, code, wait_s)
        self.process, self.start_at = None, now + wait_s

    def stop(self, wait_s: float) -> None:
        """SIGTERM, `wait_s` to end well, SIGKILL."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(wait_s)
        except subprocess.TimeoutExpired:
            log.warning("%s did not stop within %g s and is killed", self.name, wait_s)
            self.process.kill()
            self.process.wait()


class Launcher:
    """One run of the platform."""

    def __init__(self, options: Options, settings: Settings) -> None:
        os.environ.update(options.environment())
        self._options = options
        self._settings = Settings() if options.environment() else settings
        self._children: list[Child] = []
        self._stopping = False
        self._grpc_port: socket.socket | None = None

    def run(self) -> int:
        """Until a signal; the exit status."""
        configure_logging(self._settings.log_level)
        for sig in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sig, self._stop)
        data_dir = self._settings.data_dir
        check_settings(self._settings)
        lock = (data_dir / "launcher.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Misconfigured(
                f"another `aimass up` runs in AIMASS_DATA_DIR={data_dir}; stop it or choose another folder"
            ) from None
        try:
            listener = self._listen()  # first: the key is shown once, and must not be lost to a port in use
            grpc_port = self._reserve_grpc()
            self._start_redis()
            asyncio.run(open_platform(self._settings).close())  # says which address is wrong, before any child does
            upgrade(self._settings.database_url)
            self._make_first_key()
            url = self._start_gateways(listener, grpc_port)
            self._start_workers()
            if self._wait_ready():
                grpc_url = "" if grpc_port < 0 else f" grpc://{url_host(self._settings.gateway.host)}:{grpc_port}"
                sys.stdout.write(f"ready {url}{grpc_url}\n")
                sys.stdout.flush()
            self._watch()
        finally:
            self._stop_all()
            if self._grpc_port is not None:
                self._grpc_port.close()
            lock.close()
        return 0

    def _stop(self, _signal: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _add(self, child: Child) -> Child:
        self._children.append(child)
        child.start()
        return child

    def _start_redis(self) -> None:
        if self._settings.redis.url:
            return
        if not self._options.embedded:
            raise Misconfigured("--no-embedded needs AIMASS_REDIS_URL, such as redis://127.0.0.1:6379")
        path = Path(self._settings.redis_url.removeprefix("unix://"))
        path.unlink(missing_ok=True)
        folder = self._settings.data_dir.resolve() / "redis"
        self._add(Child("redis", server_command(find_server(), folder, path)))
        deadline = time.monotonic() + 10
        while not _answers(path):
            if time.monotonic() > deadline:
                raise Misconfigured(f"the embedded valkey server did not start within 10 s; its folder is {folder}")
            time.sleep(0.02)

    def _make_first_key(self) -> None:
        secret = asyncio.run(first_key(self._settings, self._options.api_key))
        if secret and not self._options.api_key:
            sys.stdout.write(f"API key (shown once): {secret}\n")
            sys.stdout.flush()

    def _listen(self) -> socket.socket:
        gateway = self._settings.gateway
        listener = bind(gateway.host, gateway.port, "AIMASS_GATEWAY_PORT")
        listener.listen(2048)
        listener.set_inheritable(True)
        return listener

    def _reserve_grpc(self) -> int:
        """The port of gRPC, kept for the gateways for as long as the launcher runs; -1 for none.

        gRPC takes no socket from outside: its servers share a port by SO_REUSEPORT, as this socket does with them. That
        nobody else has the port is found out before, without sharing.
        """
        gateway = self._settings.gateway
        if gateway.grpc_port < 0:
            return -1
        with bind(gateway.host, gateway.grpc_port, "AIMASS_GATEWAY_GRPC_PORT") as probe:
            port: int = probe.getsockname()[1]
        self._grpc_port = bind(gateway.host, port, "AIMASS_GATEWAY_GRPC_PORT", share=True)
        return port

    def _start_gateways(self, listener: socket.socket, grpc_port: int) -> str:
        fd = listener.fileno()
        gateway, serving = self._settings.gateway, self._settings.serving
        environment = {"AIMASS_GATEWAY_GRPC_PORT": str(grpc_port)}
        if not serving.threads:  # processes that each took all cores would be in each other's way
            cores = len(os.sched_getaffinity(0)) // gateway.processes
            environment["AIMASS_SERVING_THREADS"] = str(max(1, cores))
        for number in range(gateway.processes):
            check_socket_path(self._settings.gateway_socket(number))
            command = [sys.executable, "-m", "app.gateway.main", "--fd", str(fd), "--number", str(number)]
            self._add(Child(f"gateway {number}", command, environment, pass_fds=(fd,)))
        return f"http://{url_host(self._settings.gateway.host)}:{listener.getsockname()[1]}"

    def _start_workers(self) -> None:
        gpus = count_gpus()
        if self._options.workers is None and gpus:
            devices = [f"cuda:{n}" for n in range(gpus)]
        else:
            devices = ["cpu"] * (1 if self._options.workers is None else self._options.workers)
        for number, device in enumerate(devices):
            environment = {"AIMASS_WORKER_DEVICE": device}
            self._add(Child(f"worker {number} ({device})", [sys.executable, "-m", "workers.agent"], environment))

    def _wait_ready(self) -> bool:
        """True once every gateway is ready; False if a signal came first. Misconfigured, with what is missing, at last.

        Each is asked at its own socket: at the common one, it would be chance who answers. One that lives and lacks
        nothing but endpoints is waited for as long as it takes: many models, or large ones, are no fault.
        """
        deadline = time.monotonic() + READY_WITHIN_S
        for number in range(self._settings.gateway.processes):
            child = next(child for child in self._children if child.name == f"gateway {number}")
            told_at = time.monotonic()
            while (missing := _not_ready(self._settings.gateway_socket(number))) is not None:
                now = time.monotonic()
                if self._stopping:
                    return False
                if child.ends >= HOPELESS:
                    raise Misconfigured(f"gateway {number} ended {HOPELESS} times at its start; it says why above")
                if set(missing) == {"endpoints"}:
                    deadline = now + READY_WITHIN_S
                what = "; ".join(f"{name}: {why}" for name, why in missing.items())
                if now > deadline:
                    raise Misconfigured(f"gateway {number} is not ready after {READY_WITHIN_S:g} s: {what}")
                if now - told_at > TELL_S:
                    log.info("waiting for gateway %d: %s", number, what)
                    told_at = now
                self._check_children()
                time.sleep(0.05)
        return not self._stopping

    def _watch(self) -> None:
        while not self._stopping:
            self._check_children()
            time.sleep(TICK_S)

    def _check_children(self) -> None:
        for child in self._children:
            child.check()

    def _stop_all(self) -> None:
        """Workers first, then gateways, then the rest; those of a kind all at once."""
        for kind, wait_s in (
            ("worker", self._settings.worker.grace_s),
            ("gateway", self._settings.gateway.drain_s),
            ("", 0.0),
        ):
            children = [child for child in self._children if child.name.startswith(kind)]
            for child in children:
                if child.process is not None:
                    child.process.terminate()
            for child in children:
                child.stop(wait_s + 10)


def bind(host: str, port: int, setting: str, *, share: bool = False) -> socket.socket:
    """A TCP socket with this address; `share` it with others that do. Misconfigured if it cannot be had."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if share else socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise Misconfigured(
            f"cannot listen on {host}:{port} (AIMASS_GATEWAY_HOST, {setting}): {error.strerror}"
        ) from None
    return bound


def url_host(host: str) -> str:
    """A host as URLs write it."""
    return f"[{host}]" if ":" in host else host


def _not_ready(gateway: Path) -> dict[str, str] | None:
    """The checks that the gateway at this socket does not pass, and why; None if it is ready."""
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(gateway)), timeout=2.0) as client:
            answer = client.get("http://gateway/readyz")
    except httpx.HTTPError:
        return {"gateway": "no answer"}
    if answer.status_code == httpx.codes.OK:
        return None
    try:
        checks = answer.json()["checks"]
    except (ValueError, LookupError, TypeError):
        return {"gateway": answer.text}
    return {name: why for name, why in checks.items() if why != "ok"}


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        probe.sendall(b"PING\r\n")
        return probe.recv(16).startswith(b"+PONG")


def count_gpus() -> int:
    """NVIDIA devices of this machine, without loading a library for it."""
    try:
        return sum(
            entry.name.removeprefix("nvidia").isdigit()
            for entry in Path("/dev").iterdir()
            if entry.name.startswith("nvidia")
        )
    except OSError:
        return 0
