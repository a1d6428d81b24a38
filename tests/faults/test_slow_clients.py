"""Clients that hold connections without using them: they are borne for a while, and stop nobody else."""

import asyncio
import contextlib
import resource
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest

from tests.support.connections import Connection
from tests.support.imports import COLUMNS, import_linear, route, weights
from tests.support.platform import KEY, Platform

MODEL = "linear"
LORIS, IDLE = 300, 10_000
HEAD = f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\n"
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with Platform(AIMASS_GATEWAY_REQUEST_TIMEOUT_S="6") as running:
        import_linear(running, MODEL, 1)
        route(running, MODEL, MODEL, 1)
        yield running


@pytest.fixture
def open_files() -> Iterator[None]:
    """As many as this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < IDLE + 500:
        pytest.skip(f"the limit of open files is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def serves(platform: Platform) -> None:
    """A prediction that is right, over a new connection, and /readyz."""
    rows = np.random.default_rng().standard_normal((3, COLUMNS)).astype(np.float32)
    with Connection(str(platform.url)) as connection:
        np.testing.assert_allclose(connection.infer(MODEL, rows), rows @ weights(1), rtol=1e-4, atol=1e-4)
        assert connection.get("/readyz")[0] == 200


@contextlib.asynccontextmanager
async def connected(platform: Platform, count: int) -> AsyncIterator[list[Stream]]:
    port = int(str(platform.url).rsplit(":", 1)[1])
    streams: list[Stream] = []
    try:
        while len(streams) < count:
            wanted = min(500, count - len(streams))
            streams += await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(wanted)))
        yield streams
    finally:
        for _, writer in streams:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, writer in streams), return_exceptions=True)


async def trickle(stream: Stream, head: bytes, rest: bytes) -> bytes:
    """Send the head, then a byte a second until the server ends it: what it said."""
    reader, writer = stream
    writer.write(head)
    answer = asyncio.create_task(reader.read())
    for byte in rest:
        if (await asyncio.wait([answer], timeout=1))[0]:
            break
        with contextlib.suppress(ConnectionError):
            writer.write(bytes([byte]))
            await writer.drain()
    try:
        return await answer
    except ConnectionError:
        return b""


@pytest.mark.parametrize(
    ("head", "rest", "answer"),
    [
        (b"GET /v2 HTTP/1.1\r\nhost: x\r\n", b"x-loris: " + b"a" * 100, b"HTTP/1.1 408 "),
        (HEAD.encode() + b"content-length: 5000\r\n\r\n", b"a" * 100, b"HTTP/1.1 408 "),
        (HEAD.encode() + b"transfer-encoding: chunked\r\n\r\n", b"1\r\na\r\n" * 20, b"HTTP/1.1 408 "),
        (HEAD.replace(KEY, "wrong").encode() + b"content-length: 5000\r\n\r\n", b"a" * 100, b"HTTP/1.1 401 "),
    ],
    ids=["head", "body", "chunks", "body after a refusal"],
)
async def test_requests_that_trickle_are_ended_and_hinder_nobody(
    platform: Platform, head: bytes, rest: bytes, answer: bytes
) -> None:
    async with connected(platform, LORIS) as streams:
        trickling = asyncio.gather(*(trickle(stream, head, rest) for stream in streams))
        while not trickling.done():
            await asyncio.to_thread(serves, platform)
        said = await trickling
    # A byte that comes after the end is answered with a reset, which can overtake what was said.
    assert set(said) <= {b"", *(text for text in said if text.startswith(answer))}
    assert any(said)


@pytest.mark.usefixtures("open_files")
async def test_thousands_of_idle_connections_hinder_nobody_and_are_closed(platform: Platform) -> None:
    async with connected(platform, IDLE) as streams:
        ends = asyncio.gather(*(reader.read() for reader, _ in streams))
        while not ends.done():
            await asyncio.to_thread(serves, platform)
        assert set(await ends) == {b""}


@pytest.mark.usefixtures("open_files")
async def test_ten_thousand_connections_are_open_at_once() -> None:
    with Platform(workers=0, AIMASS_GATEWAY_REQUEST_TIMEOUT_S="600") as platform:
        async with connected(platform, IDLE) as streams:
            for stream in (streams[0], streams[-1]):
                stream[1].write(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
                assert (await stream[0].readline()).startswith(b"HTTP/1.1 200 ")
            with Connection(str(platform.url)) as connection:
                assert connection.get("/readyz")[0] == 200
            [gateway] = platform.processes("app.gateway.main")
            assert gateway.num_fds() > IDLE
            print(f"{gateway.memory_info().rss / 1e6:.0f} MB with {IDLE} connections")  # noqa: T201 - a measurement, for `pytest -s`
