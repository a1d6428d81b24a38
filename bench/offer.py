"""python -m bench.offer JSON: a cheap load generator for overload; prints one JSON object.

    {"url": "http://127.0.0.1:8000", "path": "/v2/…", "bodies": FILE, "seconds": 5, "connections": 32, "rate": 0}

With `rate` 0 each connection sends its next request as soon as it has its answer (closed loop). Otherwise so many
requests a second are sent, whatever becomes of them (open loop), over `connections`; a request's time counts from the
moment that it was due, so one that found no free connection has waited for it.
A client in httpx would take as much of the machine as the server; this one takes some 30 µs a request.
"""

import asyncio
import json
import pickle
import resource
import statistics
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import uvloop

TICK_S = 0.002


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request under way."""

    def __init__(self, load: "Load") -> None:
        self._load = load
        self._text = b""
        self._due = 0.0
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Free from now on."""
        self._transport: Any = transport

    def connection_lost(self, _: Exception | None) -> None:
        """Its request, if any, is lost."""
        self._load.lost(self)

    def send(self, request: bytes, due: float) -> None:
        """Send a request that was due at this time."""
        self._due, self.busy = due, True
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Note the answer once it is whole."""
        text = self._text + data if self._text else data
        end = text.find(b"\r\n\r\n")
        at = text.find(b"content-length: ", 0, end)
        if end < 0 or len(text) < end + 4 + int(text[at + 16 : text.index(b"\r\n", at)]):
            self._text = text
            return
        self._text, self.busy = b"", False
        told = text.find(b"retry-after: ", 0, end) >= 0
        self._load.answered(self, int(text[9:12]), time.perf_counter() - self._due, told=told)

    def close(self) -> None:
        """Close it."""
        self._transport.close()


class Load:
    """One measurement."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._order = order
        self._requests = pickle.loads(Path(order["bodies"]).read_bytes())  # noqa: S301 - the benchmark's own file
        self._turn = 0
        self._free: deque[Connection] = deque()
        self._all: set[Connection] = set()
        self._waiting: deque[float] = deque()  # due, without a free connection
        self._end = 0.0
        self._times: dict[int, list[float]] = {}
        self._untold = self._broken = self._under_way = 0
        self._done = asyncio.Event()  # after the end, nothing is under way any more

    async def run(self) -> dict[str, Any]:
        """Connect, send for so many seconds, let what is under way end."""
        loop = asyncio.get_running_loop()
        host, port = self._order["url"].removeprefix("http://").split(":")
        for _ in range(self._order["connections"]):
            _, connection = await loop.create_connection(lambda: Connection(self), host, int(port))
            self._all.add(connection)
            self._free.append(connection)
        begun, used_s = time.perf_counter(), _cpu_s()
        self._end = begun + self._order["seconds"]
        if self._order["rate"]:
            await self._open(begun)
        else:
            while self._free:
                self._send(self._free.popleft(), time.perf_counter())
            await asyncio.sleep(self._order["seconds"])
        took_s, used_s = time.perf_counter() - begun, _cpu_s() - used_s
        found = {status: len(times) for status, times in self._times.items()}
        if self._under_way:
            await self._done.wait()
        return {"cpu": used_s / took_s, **self._result(found, took_s)}

    async def _open(self, begun: float) -> None:
        sent, rate = 0, self._order["rate"]
        while (now := time.perf_counter()) < self._end:
            due = int((now - begun) * rate)
            self._waiting.extend(begun + number / rate for number in range(sent, due))
            sent = due
            while self._waiting and self._free:
                self._send(self._free.popleft(), self._waiting.popleft())
            await asyncio.sleep(TICK_S)

    def _send(self, connection: Connection, due: float) -> None:
        self._turn = (self._turn + 1) % len(self._requests)
        self._under_way += 1
        connection.send(self._requests[self._turn], due)

    def answered(self, connection: Connection, status: int, took_s: float, *, told: bool) -> None:
        """An answer has come."""
        self._under_way -= 1
        self._times.setdefault(status, []).append(took_s)
        self._untold += status == 429 and not told
        now = time.perf_counter()
        if now < self._end and (self._waiting or not self._order["rate"]):
            self._send(connection, self._waiting.popleft() if self._waiting else now)
        else:
            self._free.append(connection)
            self._end_if_done(now)

    def _end_if_done(self, now: float) -> None:
        if now >= self._end and not self._under_way:
            self._done.set()

    def lost(self, connection: Connection) -> None:
        """A connection has gone."""
        self._all.discard(connection)
        if connection.busy:
            self._broken += 1
            self._under_way -= 1
            self._end_if_done(time.perf_counter())
        if connection in self._free:
            self._free.remove(connection)

    def _result(self, found: dict[int, int], took_s: float) -> dict[str, Any]:
        for connection in list(self._all):
            connection.close()
        return {
            "seconds": took_s,
            "rates": {status: count / took_s for status, count in found.items()},
            "p50_ms": {status: statistics.median(times) * 1e3 for status, times in self._times.items()},
            "p99_ms": {status: sorted(times)[int(len(times) * 0.99)] * 1e3 for status, times in self._times.items()},
            "untold": self._untold,
            "broken": self._broken,
        }


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def write_requests(file: Path, path: str, key: str, bodies: list[tuple[int, bytes]]) -> Path:
    """Whole requests for `bodies` of (length of the inference header, body)."""
    lines = (
        f"POST {path} HTTP/1.1",
        "host: x",
        f"x-api-key: {key}",
        "inference-header-content-length: %d",
        "content-length: %d",
    )
    head = "\r\n".join([*lines, "", ""]).encode()
    file.write_bytes(pickle.dumps([head % (length, len(body)) + body for length, body in bodies]))
    return file


if __name__ == "__main__":
    print(json.dumps(uvloop.run(Load(json.loads(sys.argv[1])).run())))
