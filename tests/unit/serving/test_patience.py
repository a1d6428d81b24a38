"""Who owes the server what, and for how long it is borne."""

import asyncio
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from app.gateway.patience import Patience
from app.gateway.predict.protocol import BODY_STEP, JoiningProtocol

LIMIT_S = 30.0
IDLE_S = 5.0
HEAD = b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n"


class Wire(asyncio.Transport):
    """Keeps what is written; the peer takes nothing from `unsent` on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.unsent = 0
        self.closed = self.aborted = False
        self.gone = asyncio.Event()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        self.closed = True
        self.gone.set()

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Client:
    """One connection to an application that reads the whole body, or answers before it."""

    def __init__(self, *, early: bool = False, answers: bool = True) -> None:
        config = uvicorn.Config(self._app, interface="asgi3", log_config=None, access_log=False)
        config.load()
        self._early, self._answers = early, answers
        self.protocol, self.wire = JoiningProtocol(config, ServerState(), {}), Wire()
        self.protocol.connection_made(self.wire)
        self.patience = Patience(lambda: [self.protocol], LIMIT_S, IDLE_S)

    async def _app(self, _scope: Any, receive: Any, send: Any) -> None:
        while not self._early and (await receive()).get("more_body"):
            pass
        if not self._answers:
            await asyncio.Event().wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def send(self, data: bytes) -> None:
        self.protocol.data_received(data)
        for _ in range(5):
            await asyncio.sleep(0)

    async def closed_at(self, now: float) -> bool:
        return await self.patience.look(now) == 1


async def test_a_connection_that_says_nothing_is_closed_without_a_word():
    client = Client()
    assert not await client.closed_at(100.0)
    assert not await client.closed_at(100.0 + LIMIT_S - 1)
    assert await client.closed_at(100.0 + LIMIT_S)
    assert (client.wire.closed, client.wire.written) == (True, b"")


async def test_a_head_that_trickles_is_closed_with_408():
    client = Client()
    for second, byte in enumerate(b"GET /x HTTP/1.1\r\nHost: hhhhh"):
        await client.send(bytes([byte]))
        assert not await client.closed_at(second)
    assert await client.closed_at(LIMIT_S)
    assert client.wire.written.startswith(b"HTTP/1.1 408 ")


async def test_each_request_has_its_own_time():
    client = Client()
    for turn in range(10):
        now = turn * LIMIT_S * 0.9
        await client.send((HEAD % 2)[:10])
        assert not await client.closed_at(now)
        await client.send((HEAD % 2)[10:] + b"ab")
        assert not await client.closed_at(now)
    assert client.wire.written.count(b"200 OK") == 10


async def test_a_client_that_asks_no_more_is_closed_without_a_word():
    client = Client()
    await client.send(HEAD % 2 + b"ab")
    answered = asyncio.get_running_loop().time()
    assert not await client.closed_at(answered + IDLE_S - 1)
    await client.send(HEAD % 2 + b"ab")
    answered = asyncio.get_running_loop().time()
    assert not await client.closed_at(answered + IDLE_S - 1)
    written = client.wire.written
    assert await client.closed_at(answered + IDLE_S)
    assert (client.wire.closed, client.wire.written) == (True, written)


async def test_an_idle_client_that_has_not_fetched_its_answer_may_still_do_so():
    client = Client()
    await client.send(HEAD % 2 + b"ab")
    client.wire.unsent = 5 * BODY_STEP
    now = asyncio.get_running_loop().time() + IDLE_S
    assert await client.closed_at(now)  # for more requests; what was written is still sent
    for turn in range(1, 4):
        client.wire.unsent -= BODY_STEP
        assert not await client.closed_at(now + turn * LIMIT_S * 0.9)
    assert not client.wire.aborted
    assert await client.closed_at(now + 4 * LIMIT_S)
    assert client.wire.aborted


async def test_it_is_looked_as_often_as_idle_clients_need():
    client = Client()
    await client.send(HEAD % 2 + b"ab")
    patience = Patience(lambda: [client.protocol], LIMIT_S, 0.01)
    looking = asyncio.create_task(patience.run())
    await asyncio.wait_for(client.wire.gone.wait(), LIMIT_S / 10)
    looking.cancel()
    assert client.wire.closed


async def test_a_client_that_begins_the_next_request_is_not_idle():
    client = Client()
    await client.send(HEAD % 2 + b"ab")
    await client.send(b"P")
    answered = asyncio.get_running_loop().time()
    assert not await client.closed_at(answered + 2 * IDLE_S)
    assert await client.closed_at(answered + 2 * IDLE_S + LIMIT_S)
    assert b" 408 " in client.wire.written


async def test_a_body_that_trickles_is_closed_with_408():
    client = Client()
    await client.send(HEAD % 1_000_000)
    assert not await client.closed_at(0.0)
    await client.send(b"x")
    assert not await client.closed_at(LIMIT_S - 1)
    await client.send(b"x")
    assert await client.closed_at(LIMIT_S)
    assert client.wire.written.startswith(b"HTTP/1.1 408 ")


async def test_a_long_body_may_take_as_long_as_it_goes_on():
    client = Client()
    await client.send(HEAD % (20 * BODY_STEP))
    for turn in range(20):
        assert not await client.closed_at(turn * LIMIT_S * 0.9)
        await client.send(b"x" * BODY_STEP)
    assert client.wire.written.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("rest", [b"x", b"x" * 100])
async def test_the_rest_of_a_body_that_was_answered_early_is_not_waited_for_for_ever(rest: bytes):
    client = Client(early=True)
    await client.send(HEAD % 1000)
    assert client.wire.written.startswith(b"HTTP/1.1 200 ")
    await client.send(rest)  # which is no idle connection
    assert not await client.closed_at(0.0)
    assert await client.closed_at(LIMIT_S)
    assert client.wire.written.count(b"HTTP/1.1") == 1


async def test_whoever_waits_for_an_answer_owes_nothing():
    client = Client(answers=False)
    await client.send(HEAD % 2 + b"ab")
    for now in (0.0, LIMIT_S, 3 * LIMIT_S):
        assert not await client.closed_at(now)
    await client.send(b"GET /")  # and may begin the next request meanwhile
    for now in (3 * LIMIT_S, 5 * LIMIT_S):
        assert not await client.closed_at(now)
    [task] = client.protocol.tasks
    task.cancel()


async def test_an_answer_that_is_not_fetched_is_given_up():
    client = Client()
    client.wire.closed, client.wire.unsent = True, 2 * BODY_STEP
    assert not await client.closed_at(0.0)
    client.wire.unsent = BODY_STEP
    assert not await client.closed_at(LIMIT_S)
    assert await client.closed_at(2 * LIMIT_S)
    assert client.wire.aborted


NEXT = [b"", HEAD % 2 + b"ab", HEAD % 1_000_000 + b"ab", b"GET /"]  # what the client sends, rather than read


@pytest.mark.parametrize("more", NEXT, ids=["nothing", "request", "part of a body", "part of a head"])
async def test_a_client_that_does_not_read_is_given_up_while_its_answer_waits_to_be_written(more: bytes):
    client = Client()
    client.protocol.pause_writing()
    client.wire.unsent = 3 * BODY_STEP + 1
    await client.send(HEAD % 2 + b"ab")
    await client.send(more)
    assert not await client.closed_at(0.0)
    client.wire.unsent -= BODY_STEP
    assert not await client.closed_at(LIMIT_S)
    client.protocol.resume_writing()  # it reads, and as much waits again
    client.protocol.pause_writing()
    assert not await client.closed_at(2 * LIMIT_S)
    client.wire.unsent -= 1  # which is no step forward
    assert not await client.closed_at(3 * LIMIT_S - 1)
    assert await client.closed_at(3 * LIMIT_S)
    assert client.wire.aborted
    client.protocol.connection_lost(None)
    await asyncio.gather(*client.protocol.tasks)


async def test_a_body_that_comes_is_waited_for_though_the_answer_before_is_not_read():
    client = Client(answers=False)
    await client.send(HEAD % (4 * BODY_STEP))
    client.protocol.pause_writing()
    client.wire.unsent = 3 * BODY_STEP
    for turn in range(3):
        assert not await client.closed_at(turn * LIMIT_S)
        await client.send(b"x" * BODY_STEP)
    assert not client.wire.aborted
    [task] = client.protocol.tasks
    task.cancel()
