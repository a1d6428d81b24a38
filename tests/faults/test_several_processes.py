"""Several gateway processes on one port: killed, swapped under load, frozen; and what is told of them."""

import contextlib
import http.client
import itertools
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import psutil
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.support.connections import Connection, Wrong
from tests.support.imports import COLUMNS, import_linear, route, weights
from tests.support.platform import KEY, Platform
from tests.support.servers import wait_until

BROKEN = (OSError, http.client.HTTPException)
MODEL = "linear"


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with Platform(AIMASS_GATEWAY_PROCESSES="2", AIMASS_GATEWAY_FOLLOW_S="3") as running:
        import_linear(running, MODEL, 2)
        route(running, MODEL, MODEL, 1)
        yield running


def gateways(platform: Platform) -> list[psutil.Process]:
    return platform.processes("app.gateway.main")


def own(platform: Platform, number: int) -> httpx.Client:
    """A client of one process alone."""
    transport = httpx.HTTPTransport(uds=str(platform.data_dir / f"gateway-{number}.sock"))
    return httpx.Client(transport=transport, base_url="http://gateway", headers={"x-api-key": KEY}, timeout=30)


def ready(platform: Platform, number: int) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:  # httpx would leave a socket that is refused open
        if probe.connect_ex(str(platform.data_dir / f"gateway-{number}.sock")):
            return False
    try:
        with own(platform, number) as client:
            return client.get("/readyz").status_code == 200
    except httpx.HTTPError:
        return False


@contextlib.contextmanager
def connected(platform: Platform, each: int) -> Iterator[dict[str, list[Connection]]]:
    """`each` connections to either process, by the process's name."""
    found: dict[str, list[Connection]] = {}
    rows = np.zeros((1, COLUMNS), np.float32)

    def enough() -> bool:
        connection = stack.enter_context(Connection(str(platform.url)))
        connection.infer(MODEL, rows)
        found.setdefault(connection.process, []).append(connection)
        return len(found) == 2 and all(len(connections) >= each for connections in found.values())

    with contextlib.ExitStack() as stack:
        wait_until(enough, 60, "connections to both processes")
        yield {process: connections[-each:] for process, connections in found.items()}


class Load:
    """Threads that send random rows and compare every answer with what the allowed versions say."""

    def __init__(self, *versions: int) -> None:
        self._weights = [weights(version) for version in versions]
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.counts: Counter[str] = Counter()

    def on(self, name: str, connection: Connection, seed: int) -> None:
        """Use a connection until it breaks: counts `name right`, `name wrong`, `name broken`."""

        def work() -> None:
            random = np.random.default_rng(seed)
            try:
                while not self._stop.is_set():
                    self.counts[f"{name} {self.ask(connection, random)}"] += 1
            except BROKEN:
                self.counts[f"{name} broken"] += 1

        self._start(work)

    def anew(self, url: str) -> None:
        """Open a connection for each request: counts `refused` ones, and `new right` and so on."""

        def work() -> None:
            random = np.random.default_rng(99)
            while not self._stop.is_set():
                try:
                    with Connection(url) as connection:
                        self.counts[f"new {self.ask(connection, random)}"] += 1
                except ConnectionRefusedError:
                    self.counts["refused"] += 1
                except BROKEN:
                    self.counts["new broken"] += 1

        self._start(work)

    def ask(self, connection: Connection, random: np.random.Generator) -> str:
        rows = random.standard_normal((int(random.integers(1, 5)), COLUMNS)).astype(np.float32)
        try:
            answer = connection.infer(MODEL, rows)
        except Wrong as wrong:
            return str(wrong)
        good = any(np.allclose(answer, rows @ matrix, rtol=1e-4, atol=1e-4) for matrix in self._weights)
        return "right" if good else "wrong"

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _start(self, work: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=work))
        self._threads[-1].start()


def ready_over_grpc(platform: Platform) -> bool:
    """What a new connection hears, which goes to whichever process the kernel chooses of those that listen."""
    with grpc.insecure_channel(platform.grpc, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return bool(stub.ServerReady(service_pb2.ServerReadyRequest()).ready)


def test_a_killed_process_takes_nothing_with_it_but_its_own_connections(platform: Platform) -> None:
    with connected(platform, 4) as by_process:
        first, second = by_process
        load = Load(1)
        for seed, (name, connection) in enumerate(
            [("killed", c) for c in by_process[first]] + [("other", c) for c in by_process[second]]
        ):
            load.on(name, connection, seed)
        load.anew(str(platform.url))
        try:
            wait_until(lambda: load.counts["other right"] > 50 and load.counts["new right"] > 20, 60, "requests flow")
            number = _number_of(platform, first)
            doomed = next(process for process in gateways(platform) if process.cmdline()[-1] == str(number))
            doomed.kill()
            killed_at = time.monotonic()
            doomed.wait(10)
            wait_until(lambda: load.counts["killed broken"] == 4, 30, "its connections are gone")
            over_grpc: set[bool] = set()  # a process is there once it has loaded

            def again() -> bool:
                over_grpc.add(ready_over_grpc(platform))
                return ready(platform, number)

            wait_until(again, 30, "the launcher starts it again")
            took_s = time.monotonic() - killed_at
            assert over_grpc == {True}
            at = load.counts["other right"], load.counts["new right"]
            wait_until(lambda: (load.counts["other right"], load.counts["new right"]) > at, 30, "requests go on")
        finally:
            load.stop()
    print(f"killed to ready again: {took_s:.2f} s; {dict(load.counts)}")  # noqa: T201 - a measurement, for `pytest -s`
    unexpected = {
        key for key in load.counts if key not in {"killed right", "killed broken", "other right", "new right"}
    }
    # A connection that the killed process had just taken breaks with it.
    assert unexpected <= {"new broken"}, load.counts
    assert load.counts["new broken"] <= 1
    assert len(gateways(platform)) == 2
    wait_until(lambda: _document(platform)["processes"]["applied"] == 2, 30, "both serve again")
    assert _document(platform)["processes"]["total"] == 2  # the dead one was replaced, not added to


def test_fifty_swaps_under_load_lose_no_request(platform: Platform) -> None:
    load = Load(1, 2)
    with connected(platform, 3) as by_process:
        for seed, connection in enumerate(itertools.chain(*by_process.values())):
            load.on("swap", connection, seed)
        try:
            for turn in range(50):
                version = turn % 2 + 1
                document = route(platform, MODEL, MODEL, version)
                assert document["processes"] == {"total": 2, "applied": 2, "loading": 0, "failed": 0}
                for number in range(2):  # "applied" is true of each: none answers with the other version any more
                    with own(platform, number) as client:
                        assert client.get(f"/v2/models/{MODEL}").json()["versions"] == [str(version)]
        finally:
            load.stop()
    assert set(load.counts) == {"swap right"}, load.counts
    assert load.counts["swap right"] > 50


def test_deleting_and_unloading_hold_for_both_when_they_answer(platform: Platform) -> None:
    route(platform, MODEL, MODEL, 1)
    platform.call("POST", f"/v2/repository/models/{MODEL}/unload", 200)
    assert _statuses(platform, f"/v2/models/{MODEL}/ready") == [503, 503]
    assert _document(platform)["state"] == "unloaded"
    platform.call("POST", f"/v2/repository/models/{MODEL}/load", 200)
    assert _statuses(platform, f"/v2/models/{MODEL}/ready") == [200, 200]
    platform.call("DELETE", f"/api/v1/endpoints/{MODEL}", 204)
    assert _statuses(platform, f"/v2/models/{MODEL}/ready") == [404, 404]
    assert route(platform, MODEL, MODEL, 1)["revision"] == 1


def test_an_alias_move_holds_for_both_when_it_answers(platform: Platform) -> None:
    alias = f"/api/v1/models/{MODEL}/aliases/live"
    platform.call("PUT", alias, 200, json={"version": 1})
    platform.call("PUT", "/api/v1/endpoints/by-alias", 201, json={"model": MODEL, "routes": [{"alias": "live"}]})
    platform.call("PUT", alias, 200, json={"version": 2})
    for number in range(2):
        with own(platform, number) as client:
            assert client.get("/v2/models/by-alias").json()["versions"] == ["2"]
    platform.call("DELETE", "/api/v1/endpoints/by-alias", 204)


def test_a_process_that_does_not_follow_is_told_of(platform: Platform) -> None:
    route(platform, MODEL, MODEL, 1)
    frozen = next(process for process in gateways(platform) if process.cmdline()[-1] == "1")
    platform.freeze(frozen)
    try:
        with own(platform, 0) as client:
            body = {"model": MODEL, "routes": [{"version": 2}]}
            answer = client.put(f"/api/v1/endpoints/{MODEL}", json=body)
            assert answer.status_code == 202, answer.text
            assert answer.json()["state"] == "loading"
            assert answer.json()["processes"] == {"total": 2, "applied": 1, "loading": 1, "failed": 0}
            assert client.get(f"/v2/models/{MODEL}").json()["versions"] == ["2"]
            up = [line for line in client.get("/metrics").text.splitlines() if line.startswith("aimass_gateway_up")]
            assert up == ['aimass_gateway_up{process="0"} 1.0', 'aimass_gateway_up{process="1"} 0.0']
    finally:
        frozen.resume()
    wait_until(lambda: _document(platform)["state"] == "ready", 60, "it follows")


def test_a_process_that_cannot_load_is_told_of_with_its_reason(platform: Platform) -> None:
    route(platform, MODEL, MODEL, 1)
    frozen = next(process for process in gateways(platform) if process.cmdline()[-1] == "1")
    stored, copies = _places(platform, 2)  # asked now: the answer might be the frozen process's to give
    platform.freeze(frozen)
    try:
        with own(platform, 0) as client:
            client.put(f"/api/v1/endpoints/{MODEL}", json={"model": MODEL, "routes": [{"version": 2}]})
        stored.unlink()
        for copy in copies.rglob("*.onnx"):
            copy.unlink()
    finally:
        frozen.resume()
    wait_until(lambda: _document(platform)["state"] == "failed", 60, "it has tried")
    document = _document(platform)
    assert document["processes"]["failed"] == 1
    assert document["error"]
    answer = platform.client.post(f"/v2/repository/models/{MODEL}/load")
    assert answer.status_code != 200
    assert platform.client.get(f"/v2/models/{MODEL}").status_code == 200  # the version before, or the one that is there
    assert route(platform, MODEL, MODEL, 1)["state"] == "ready"


def test_one_scrape_has_every_process(platform: Platform) -> None:
    def answered() -> dict[str, float]:
        text = platform.client.get("/metrics").text
        lines = [line for line in text.splitlines() if line.startswith("aimass_predict_requests_total")]
        return {line.split('process="')[1][0]: float(line.split()[-1]) for line in lines if f'"{MODEL}"' in line}

    with connected(platform, 1):
        pass
    first = answered()
    assert set(first) == {"0", "1"}
    for _ in range(5):  # whoever answers the scrape
        assert answered() == first


def _number_of(platform: Platform, process: str) -> int:
    """The number of the process that begins its request ids so."""
    for number in range(2):
        with own(platform, number) as client:
            if client.get("/v2").headers["x-request-id"].startswith(process):
                return number
    raise AssertionError("no gateway has this name")


def _document(platform: Platform) -> Any:
    return platform.call("GET", f"/api/v1/endpoints/{MODEL}")


def _statuses(platform: Platform, path: str) -> list[int]:
    found = []
    for number in range(2):
        with own(platform, number) as client:
            found.append(client.get(path).status_code)
    return found


def _places(platform: Platform, version: int) -> tuple[Path, Path]:
    """Where a version's model lies in the store, and the folder of the gateways' copies."""
    found = platform.call("GET", f"/api/v1/models/{MODEL}/versions/{version}")
    files = platform.call("GET", found["links"]["files"])["items"]
    digest = next(file["sha256"] for file in files if file["path"] == "model.onnx")
    return platform.data_dir / "store" / digest[:2] / digest[2:4] / digest, platform.data_dir / "serving" / found[
        "digest"
    ]
