"""Clients that ask and take no answer: they are given up, with what is held for them; who reads slowly is not."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from tests.support.platform import KEY, Platform
from tests.support.servers import wait_until
from tests.support.wide import FACTORS, WIDTH, infer, serve_wide

MODEL = "wide"
LIMIT_S = 3
ROWS = np.arange(1, 5, dtype=np.float32)  # whose answer has 16 MiB
FILE = (
    f"GET /api/v1/models/{MODEL}/versions/1/files/model.onnx HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\n\r\n"
).encode()
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with Platform(AIMASS_GATEWAY_REQUEST_TIMEOUT_S=str(LIMIT_S), AIMASS_LIMIT_BODIES_MB="64") as running:
        serve_wide(running, MODEL)
        yield running


@asynccontextmanager
async def connected(platform: Platform, receives: int = 1 << 16) -> AsyncIterator[Stream]:
    """A connection whose system takes so many bytes, and a stream twice as many, before they are read."""
    port = int(str(platform.url).rsplit(":", 1)[1])
    with socket.socket() as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives)
        own.setblocking(False)  # noqa: FBT003 - the socket's own form
        await asyncio.get_running_loop().sock_connect(own, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=own)
        yield reader, writer
        writer.transport.abort()


def gone(platform: Platform, writer: asyncio.StreamWriter) -> bool:
    """True once the gateway has no such connection."""
    own = writer.get_extra_info("sockname")
    [gateway] = platform.processes("app.gateway.main")
    return own not in [(*found.raddr,) for found in gateway.connections() if found.raddr]


async def status(platform: Platform, request: bytes) -> int:
    async with connected(platform) as (reader, writer):
        writer.write(request)
        return int((await reader.readline()).split()[1])


async def test_who_takes_no_answers_does_not_keep_the_room_for_bodies(platform: Platform) -> None:
    first, second = infer(MODEL, ROWS), infer(MODEL, ROWS[:1], pad=25 << 20)
    other = infer(MODEL, ROWS[:1], pad=20 << 20)
    async with connected(platform) as one, connected(platform) as two, connected(platform) as three:
        for _, writer in (one, two, three):
            writer.write(first + second)  # and nothing is read

        def turned_away() -> bool:
            return asyncio.run(status(platform, other)) == 429

        await asyncio.to_thread(wait_until, turned_away, 60, "they hold what may be held")
        await asyncio.to_thread(wait_until, lambda: not turned_away(), 60, "they hold it no longer")
        for _, writer in (one, two, three):
            await asyncio.to_thread(wait_until, lambda w=writer: gone(platform, w), 60, "they are given up")
    assert await status(platform, infer(MODEL, ROWS)) == 200


@pytest.mark.parametrize("request_", [FILE, infer(MODEL, ROWS)], ids=["file", "answer"])
async def test_a_connection_whose_answer_nobody_takes_is_closed(platform: Platform, request_: bytes) -> None:
    async with connected(platform) as (_, writer):
        writer.write(request_)
        await asyncio.to_thread(wait_until, lambda: gone(platform, writer), 60, "it is closed")
    assert await status(platform, infer(MODEL, ROWS)) == 200  # others are answered as before


@pytest.mark.parametrize(
    "request_", [pytest.param(FILE, marks=pytest.mark.slow), infer(MODEL, ROWS)], ids=["file", "answer"]
)
async def test_who_reads_slowly_gets_all_of_it(platform: Platform, request_: bytes) -> None:
    async with connected(platform) as (reader, writer):
        writer.write(request_)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head + await reader.read(1000)
        size = int(head.lower().partition(b"\r\ncontent-length: ")[2].split(b"\r\n")[0])
        assert size >= len(ROWS) * WIDTH * 4  # more than the system takes for the client
        body, pause_s = b"", 3 * LIMIT_S / (size >> 16)
        while len(body) < size and (part := await reader.read(1 << 16)):
            body += part
            await asyncio.sleep(pause_s)
        assert len(body) == size
        assert FACTORS.tobytes() in body  # the model's weights, and its answer to 1
