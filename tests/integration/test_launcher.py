"""What the launcher makes of gateways that are not ready."""

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import UnixStreamServer

import orjson
import pytest

from app.cli import launcher
from app.cli.launcher import Child, Launcher, Options
from app.core.errors import Misconfigured
from app.settings import Settings

GOOD = {"registry": "ok", "endpoints": "ok"}
LOADING = {"registry": "ok", "endpoints": "not loaded yet: churn"}


class Gateway(UnixStreamServer):
    """Answers `/readyz` with these checks in turn, with the last for ever."""

    def __init__(self, path: Path, checks: list[dict[str, str]]) -> None:
        self.checks = checks
        super().__init__(str(path), Answer)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class Answer(BaseHTTPRequestHandler):
    """One of them."""

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        gateway = self.server
        assert isinstance(gateway, Gateway)
        checks = gateway.checks.pop(0) if len(gateway.checks) > 1 else gateway.checks[0]
        body = orjson.dumps({"status": "…", "checks": checks})
        self.send_response(200 if checks == GOOD else 503)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Launcher]:
    """A launcher with a gateway process, whose patience is at its end at once."""
    monkeypatch.setattr(launcher, "READY_WITHIN_S", 0.0)
    monkeypatch.setattr(launcher, "TELL_S", 0.0)
    made = Launcher(Options(), Settings(data_dir=tmp_path))
    child = Child("gateway 0", [sys.executable, "-c", "import time; time.sleep(600)"])
    child.process = subprocess.Popen(child.command)
    made._children.append(child)
    yield made
    child.stop(10)


def test_a_gateway_that_loads_is_waited_for_and_told_of(
    waiting: Launcher, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "aimass.launcher")
    with Gateway(tmp_path / "gateway-0.sock", [LOADING, LOADING, LOADING, GOOD]) as gateway:
        assert waiting._wait_ready()
        gateway.shutdown()
    assert "waiting for gateway 0: endpoints: not loaded yet: churn" in caplog.text


def test_one_that_lacks_another_thing_is_not(waiting: Launcher, tmp_path: Path):
    with Gateway(tmp_path / "gateway-0.sock", [LOADING | {"registry": "down"}]) as gateway:
        with pytest.raises(
            Misconfigured, match="not ready after 0 s: registry: down; endpoints: not loaded yet: churn"
        ):
            waiting._wait_ready()
        gateway.shutdown()


def test_one_that_ends_again_and_again_while_it_loads_is_given_up(
    waiting: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each time after it has run for a while, as one does that is killed for the memory of its last model."""
    monkeypatch.setattr(launcher, "STEADY_S", 0.0)
    monkeypatch.setattr(launcher, "RESTART_WAIT_S", (0.0,))
    [child] = waiting._children
    child.stop(10)
    child.command = [sys.executable, "-c", "raise SystemExit(1)"]
    with Gateway(tmp_path / "gateway-0.sock", [LOADING]) as gateway:
        with pytest.raises(Misconfigured, match="ended 3 times at its start"):
            waiting._wait_ready()
        gateway.shutdown()
