"""One stream: what ends it, and what it holds until then."""

import asyncio
import logging
import weakref
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

from app.core.errors import AimassError, DeadlineExceeded, Malformed
from app.gateway.grpc.stream import InferStream
from app.gateway.predict.bodies import Bodies

MIB = 1 << 20


class Client:
    """The context of a call: what the client sends, and how many answers it takes."""

    def __init__(self, *sent: Any, takes: float = float("inf")) -> None:
        self._sent = list(sent)
        self._takes = takes
        self.taken: list[str] = []
        self.stuck = asyncio.Event()

    async def read(self) -> Any:
        await asyncio.sleep(0)
        if not self._sent:
            return grpc.aio.EOF
        message = self._sent.pop(0)
        if isinstance(message, Exception):
            raise message
        return message

    async def write(self, answer: Any) -> None:
        if len(self.taken) >= self._takes:
            self.stuck.set()
            await asyncio.Event().wait()
        self.taken.append(answer.error_message or answer.infer_response.id)


def request(name: str, size: int = 0) -> Any:
    return pb.ModelInferRequest(id=name, raw_input_contents=[b"x" * size])


async def answer(given: Any) -> Any:
    echo = pb.ModelInferResponse(id=given.id, raw_output_contents=given.raw_input_contents)
    return pb.ModelStreamInferResponse(infer_response=echo)


def refuse(given: Any, error: AimassError) -> Any:
    return pb.ModelStreamInferResponse(error_message=f"{given.id}: {type(error).__name__}")


def stream(client: Client, bodies: Bodies, limit_s: float | None = None) -> InferStream:
    context: Any = client
    return InferStream(context, bodies, limit_s, answer, refuse)


async def test_all_are_answered_and_nothing_is_held():
    bodies, client = Bodies(MIB), Client(request("a", 300_000), request("b"), request("c", 300_000))
    assert await stream(client, bodies).run() is None
    assert (client.taken, bodies.held) == (["a", "b", "c"], 0)


async def test_what_cannot_be_read_ends_the_stream_after_the_answers_before_it():
    broken = Malformed("no message")
    client = Client(request("a"), request("b"), broken, request("c"))
    assert await stream(client, Bodies(MIB)).run() is broken
    assert client.taken == ["a", "b"]


async def test_a_defect_of_the_reader_ends_the_stream_too(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.CRITICAL):
        error = await stream(Client(request("a"), RuntimeError("defect")), Bodies(MIB)).run()
    assert error is not None
    assert error.code == "internal"


async def test_too_much_is_refused_in_its_turn():
    bodies = Bodies(MIB)
    bodies.held = MIB - 200_000  # of others
    client = Client(request("a", 150_000), request("b", 150_000), request("c"), takes=0)
    running = asyncio.create_task(stream(client, bodies).run())
    await client.stuck.wait()
    for _ in range(20):
        await asyncio.sleep(0)  # until all were read
    assert bodies.held - MIB + 200_000 > 150_000  # `a` is not sent yet
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert bodies.held == MIB - 200_000

    client = Client(request("a", 300_000), request("b"))
    assert await stream(client, bodies).run() is None
    assert client.taken == ["a: Overloaded", "b"]


@pytest.mark.parametrize(("size", "limit_s"), [(100_000, 30), (4 * MIB, 120)])
async def test_a_client_that_takes_no_answer_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, size: int, limit_s: float
):
    """For longer where the answer is large."""
    loop, late_s = asyncio.get_running_loop(), 0.0
    clock = loop.time
    monkeypatch.setattr(loop, "time", lambda: clock() + late_s)
    bodies, client = Bodies(20 * MIB), Client(*(request(name, size) for name in "abc"), takes=1)
    running = asyncio.create_task(stream(client, bodies, limit_s=30).run())
    await client.stuck.wait()
    late_s = limit_s - 1.0
    for _ in range(20):
        await asyncio.sleep(0)
    assert not running.done()
    assert bodies.held > 2 * size
    late_s = limit_s + 1.0
    error = await running
    assert isinstance(error, DeadlineExceeded)
    assert "AIMASS_GATEWAY_REQUEST_TIMEOUT_S" in error.detail
    assert (client.taken, bodies.held) == (["a"], 0)


class Message:
    """As much of a message as a stream asks for."""

    def __init__(self, size: int) -> None:
        self._size = size

    def ByteSize(self) -> int:  # noqa: N802 - protobuf's
        return self._size


async def test_an_idle_stream_keeps_neither_messages_nor_answers():
    loop, idle, bodies = asyncio.get_running_loop(), asyncio.Event(), Bodies(MIB)
    messages = [Message(300_000), Message(2 * MIB)]  # one is answered and one refused
    kept = [weakref.ref(message) for message in messages]

    def made(*_given: Any) -> Message:
        kept.append(weakref.ref(reply := Message(200_000)))
        return reply

    async def read() -> Any:
        return messages.pop(0) if messages else await loop.create_future()

    async def write(_answer: Any) -> None:
        if len(kept) == 4:
            idle.set()

    async def later(*_given: Any) -> Any:
        return made()

    context: Any = Client()
    context.read, context.write = read, write
    running = asyncio.create_task(InferStream(context, bodies, None, later, made).run())
    await idle.wait()
    for _ in range(5):
        await asyncio.sleep(0)
    assert [reference() for reference in kept] == [None] * 4
    assert bodies.held == 0
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
