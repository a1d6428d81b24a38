"""An answer that is waited for until the caller's deadline, or until the caller has left."""

import asyncio
import math
import time
from collections.abc import Awaitable
from typing import TypeVar

from app.core.errors import DeadlineExceeded
from app.gateway.predict.exchange import ClientGone, Exchange

Found = TypeVar("Found")


async def within(limit_s: float | None, answer: Awaitable[Found]) -> Found:
    """The answer, if it is there after `limit_s` seconds; DeadlineExceeded otherwise. None: however long it takes."""
    try:
        async with asyncio.timeout(limit_s):
            return await answer
    except TimeoutError:
        raise DeadlineExceeded("the model did not answer within the request's time") from None


async def watched(exchange: Exchange, answer: Awaitable[Found], deadline: float) -> Found:
    """The answer; DeadlineExceeded at the deadline, on `perf_counter`'s clock, ClientGone if the caller leaves."""
    future = asyncio.ensure_future(answer)
    if future.done():  # an answer that was kept
        return future.result()
    gone = asyncio.create_task(exchange.until_gone())
    gone.add_done_callback(lambda _: future.cancel())
    left_s = None if deadline == math.inf else max(0.0, deadline - time.perf_counter())
    try:
        return await within(left_s, future)
    except asyncio.CancelledError:
        if gone.done():
            raise ClientGone from None
        raise
    finally:
        gone.cancel()
