"""What JoiningProtocol sends is byte for byte what uvicorn's own class sends, in fewer writes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from app.gateway.predict.bodies import Bodies
from app.gateway.predict.exchange import JSON, Exchange
from app.gateway.predict.protocol import MOST_HEAD, WHOLE_ANSWER, JoiningProtocol

POST = b"POST /x HTTP/1.1\r\nHost: h\r\nX-Request-Id: r-1\r\nContent-Length: 4\r\n\r\nbody"
GONE = b""  # in the place of bytes that arrive: the peer has closed


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


App = Callable[[Any, Any, Any], Awaitable[None]]


def answering(status: int = 200, size: int = 20) -> App:
    """Reads the body and answers as the prediction paths do."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        exchange = Exchange(scope, receive, send, Bodies(1 << 20))
        body = await exchange.body(1 << 20)
        await exchange.answer(status, ((body or b"none") * size)[:size], [JSON])

    return app


async def talk(
    kind: type[HttpToolsProtocol], app: App, *arrivals: bytes, paused: bool = False, turns: int = 10, **config: Any
) -> Wire:
    """Let the bytes arrive one after the other, so many turns of the loop apart; what went out."""
    settings = uvicorn.Config(app, log_config=None, access_log=False, server_header=False, date_header=False, **config)
    settings.load()
    state = ServerState()
    state.default_headers = settings.encoded_headers
    protocol, wire = kind(settings, state, {}), Wire()
    protocol.connection_made(wire)
    if paused:
        protocol.pause_writing()
    for data in arrivals:
        if data is GONE:
            protocol.connection_lost(None)
        else:
            protocol.data_received(data)
        for _ in range(turns):
            await asyncio.sleep(0)
    if paused:
        protocol.resume_writing()
        for _ in range(turns):
            await asyncio.sleep(0)
    if protocol.timeout_keep_alive_task:
        protocol.timeout_keep_alive_task.cancel()
    return wire


@pytest.mark.parametrize(
    ("arrivals", "writes"),
    [
        ([POST], 1),
        ([POST, POST], 2),
        ([POST + POST + POST], 3),  # pipelined
        ([POST[:50], POST[50:-2], POST[-2:]], 1),
        ([POST.replace(b"HTTP/1.1", b"HTTP/1.0")], 1),
        ([POST.replace(b"Host: h", b"Connection: close")], 1),
        ([POST.replace(b"Host: h", b"Expect: 100-continue")], 2),
        ([b"HEAD /x HTTP/1.1\r\nHost: h\r\nX-Request-Id: r-1\r\n\r\n"], 1),
    ],
)
@pytest.mark.parametrize("status", [200, 404, 503])
async def test_the_bytes_are_uvicorns(arrivals: list[bytes], writes: int, status: int):
    ours = await talk(JoiningProtocol, answering(status), *arrivals)
    theirs = await talk(HttpToolsProtocol, answering(status), *arrivals)
    assert b"".join(ours.writes) == b"".join(theirs.writes)
    assert ours.closed == theirs.closed
    assert len(ours.writes) == writes
    assert b"HTTP/1.1 %d " % status in ours.writes[-1] + ours.writes[0]


async def test_a_large_body_is_not_copied_to_join_it():
    size = 300_000
    ours = await talk(JoiningProtocol, answering(size=size), POST)
    theirs = await talk(HttpToolsProtocol, answering(size=size), POST)
    assert b"".join(ours.writes) == b"".join(theirs.writes)
    assert [len(data) for data in ours.writes[1:]] == [size]


async def test_a_slow_reader_is_waited_for():
    ours = await talk(JoiningProtocol, answering(), POST, paused=True)
    theirs = await talk(HttpToolsProtocol, answering(), POST, paused=True)
    assert b"".join(ours.writes) == b"".join(theirs.writes) != b""


async def test_nothing_is_written_to_a_peer_who_has_gone():
    done = asyncio.Event()

    async def late(scope: Any, receive: Any, send: Any) -> None:
        exchange = Exchange(scope, receive, send, Bodies(1))
        await exchange.body(1 << 20)
        await done.wait()
        await exchange.answer(200, b"late", [JSON])

    asyncio.get_running_loop().call_later(0.01, done.set)
    wire = await talk(JoiningProtocol, late, POST, GONE)
    await done.wait()
    await asyncio.sleep(0)
    assert wire.writes == []


async def test_an_application_between_sees_the_messages():
    seen: list[str] = []

    async def between(scope: Any, receive: Any, send: Any) -> None:
        async def watched(message: Any) -> None:
            seen.append(message["type"])
            await send(message)

        assert WHOLE_ANSWER in scope["extensions"]
        await answering()(scope, receive, watched)

    ours = await talk(JoiningProtocol, between, POST)
    theirs = await talk(HttpToolsProtocol, answering(), POST)
    assert b"".join(ours.writes) == b"".join(theirs.writes)
    assert seen == ["http.response.start", "http.response.body"]


async def test_headers_of_the_servers_own_are_not_lost():
    more = {"headers": [("x-server", "one")]}
    ours = await talk(JoiningProtocol, answering(), POST, **more)
    theirs = await talk(HttpToolsProtocol, answering(), POST, **more)
    assert b"".join(ours.writes) == b"".join(theirs.writes)
    assert b"x-server: one\r\n" in b"".join(ours.writes)


async def test_a_task_that_ends_is_not_waited_for():
    done = asyncio.Event()

    async def waiting(scope: Any, receive: Any, send: Any) -> None:
        await done.wait()
        await answering()(scope, receive, send)

    settings = uvicorn.Config(waiting, log_config=None, access_log=False)
    settings.load()
    state = ServerState()
    protocol = JoiningProtocol(settings, state, {})
    protocol.connection_made(Wire())
    protocol.data_received(POST)
    await asyncio.sleep(0)
    assert len(state.tasks) == 1
    done.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert (len(state.tasks), state.total_requests) == (0, 1)


H2C = POST.replace(b"h\r\n", b"h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n", 1)
SOCKET = POST.replace(b"h\r\n", b"h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n", 1)
CHUNKED = SOCKET.replace(b"Content-Length: 4", b"Transfer-Encoding: chunked")[:-4] + b"4\r\nbody\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("arrivals", "answers"),
    [
        ([H2C], 1),
        ([SOCKET], 1),
        ([CHUNKED], 1),
        ([H2C[:-4], b"body"], 1),  # as Java sends it
        ([H2C[:40], H2C[40:-2], b"dy"], 1),
        ([H2C + POST + SOCKET + CHUNKED + H2C], 5),
        ([H2C * 1000], 1000),
        ([POST, H2C, POST], 3),
    ],
)
async def test_a_request_that_asks_for_another_protocol_is_answered_in_this_one(arrivals: list[bytes], answers: int):
    wire = await talk(JoiningProtocol, answering(size=4), *arrivals, turns=2500)
    assert b"".join(wire.writes).count(b"HTTP/1.1 200 OK\r\n") == answers
    assert b"".join(wire.writes).count(b"\r\n\r\nbody") == answers
    assert not wire.closed


@pytest.mark.parametrize(
    "data",
    [
        b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n",
        H2C.replace(b"Length: 4", b"Length: x"),
        CHUNKED.replace(b"\r\n4\r\n", b"\r\nx\r\n"),
        H2C + b"\0\r\n\r\n",
    ],
)
async def test_what_is_no_request_is_refused(data: bytes):
    wire = await talk(JoiningProtocol, answering(), data)
    assert b"".join(wire.writes).startswith(b"HTTP/1.1 400 ")
    assert wire.closed


async def test_a_connection_that_was_to_be_closed_is_closed_after_an_upgrade_was_ignored():
    wire = await talk(JoiningProtocol, answering(), H2C.replace(b"Connection: ", b"Connection: close, "))
    assert b"connection: close\r\n" in b"".join(wire.writes)
    assert wire.closed


PIECE = b"x" * 16_000
HEADERS = b"".join(b"x-%d: 1\r\n" % n for n in range(2000))


@pytest.mark.parametrize(
    "pieces",
    [
        [b"POST /x HTTP/1.1\r\nHost: h\r\nX-Large: ", *[PIECE] * 6],
        [b"GET /", *[PIECE] * 6],
        [b"POST /x HTTP/1.1\r\n", *[HEADERS] * 5],
        [POST, b"POST /x HTTP/1.1\r\nX-Large: ", *[PIECE] * 6],
    ],
)
async def test_a_head_that_does_not_end_is_refused(pieces: list[bytes]):
    wire = await talk(JoiningProtocol, answering(), *pieces)
    assert wire.writes[-1].startswith(b"HTTP/1.1 431 ")
    head, _, body = wire.writes[-1].partition(b"\r\n\r\n")
    assert b"content-length: %d" % len(body) in head
    assert b"64 KiB" in body
    assert wire.closed


async def test_trailers_that_do_not_end_close_the_connection():
    head = CHUNKED[: CHUNKED.index(b"0\r\n\r\n")] + b"0\r\nx-trailer: "
    wire = await talk(JoiningProtocol, answering(), head, *[PIECE] * 6)
    assert wire.closed
    assert not any(b" 200 " in data for data in wire.writes)


async def test_bodies_and_many_small_heads_are_not_taken_for_a_head():
    large = POST.replace(b"Length: 4", b"Length: %d" % (8 * len(PIECE)))[:-4]
    wire = await talk(JoiningProtocol, answering(), large, *[PIECE] * 8, *[POST] * 1000)
    assert len(POST) * 1000 > MOST_HEAD
    assert b"".join(wire.writes).count(b" 200 OK") == 1001
    assert not wire.closed
