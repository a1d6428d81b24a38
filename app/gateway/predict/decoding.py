"""Decoding large bodies and pictures, in threads of their own: in turn, counted among the bodies, for who still waits.

What is small beside them is decoded in other threads, and does not wait for them.
"""

import asyncio
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from app.core.errors import DeadlineExceeded
from app.gateway.predict.exchange import ClientGone, Exchange
from app.gateway.predict.watching import watched
from app.serving.instances import BeforePicture, InstanceDecoder
from app.serving.types import Tensors

# Bytes of JSON from which on it is decoded in turn, and of memory after which what is free is given back.
_LARGE = 1 << 20
# About what decoding takes: for each byte of JSON (its texts, the parser's) and for each value (an object of Python).
_BYTE, _VALUE = 4, 32
# Parsers of JSON let no other thread go on: two at once would take as long, and twice the memory.
_json = ThreadPoolExecutor(1, thread_name_prefix="json")
_pictures = ThreadPoolExecutor(max(2, len(os.sched_getaffinity(0))), thread_name_prefix="pictures")

Found = TypeVar("Found")


async def decode_instances(
    exchange: Exchange, decode: InstanceDecoder, body: bytes, bare: Callable[[bytes], bytes] | None
) -> tuple[Tensors, int]:
    """What `decode` makes of the body, or of what `bare` makes of it first.

    DeadlineExceeded and ClientGone as of `watched`; Overloaded where there is no room for a picture.
    """

    def decoded(before: BeforePicture | None = None) -> tuple[Tensors, int]:
        return decode(body if bare is None else bare(body), before)

    if decode.pictures:
        return await _in_turn(exchange, _pictures, body, len(body), decoded)
    return await decode_json(exchange, body, len(body), decoded)


async def decode_json(exchange: Exchange, body: bytes, json_bytes: int, decode: Callable[[], Found]) -> Found:
    """What `decode` makes of a body that begins with so many bytes of JSON; the errors of `watched`."""
    if json_bytes <= _LARGE:
        return await asyncio.to_thread(decode)
    return await _in_turn(exchange, _json, body, json_bytes, lambda _: decode())


async def _in_turn(
    exchange: Exchange,
    executor: ThreadPoolExecutor,
    body: bytes,
    json_bytes: int,
    decode: Callable[[BeforePicture], Found],
) -> Found:
    turn = _Turn(exchange)
    turn.check()
    decoding = asyncio.get_running_loop().run_in_executor(executor, turn.run, body, json_bytes, decode)
    try:
        return await watched(exchange, decoding, turn.deadline)
    finally:
        turn.over = True
        if turn.most > _LARGE:
            exchange.bodies.trim_later()


class _Turn:
    """The decoding of one body, as its thread sees it: the memory that it takes, and whether anybody waits for it."""

    def __init__(self, exchange: Exchange) -> None:
        self.deadline = exchange.deadline()
        self.over = False  # nobody waits any more
        self.most = 0  # bytes that it has taken at once
        self._bodies = exchange.bodies
        self._body = exchange.held
        self._text = self._picture = 0

    def check(self) -> None:
        """DeadlineExceeded or ClientGone if nobody waits any more."""
        if time.perf_counter() >= self.deadline:
            raise DeadlineExceeded("the request's time was over before it was decoded")
        if self.over:
            raise ClientGone

    def run(self, body: bytes, json_bytes: int, decode: Callable[[BeforePicture], Found]) -> Found:
        """Decode, unless nobody waits any more."""
        self.check()
        self.most = _BYTE * min(json_bytes, len(body)) + _VALUE * body.count(b",", 0, json_bytes)
        # Never refused: what is turned away for want of room would come again.
        self._bodies.take(self.most, math.inf)
        self._text = self.most
        try:
            return decode(self._before_picture)
        finally:
            self._bodies.give_back(self._text + self._picture)

    def _before_picture(self, size: int) -> None:
        self.check()
        self._bodies.give_back(self._picture)
        self._picture = 0
        self._bodies.take(size, self._body + self._text)
        self._picture = size
        self.most = max(self.most, self._text + size)
