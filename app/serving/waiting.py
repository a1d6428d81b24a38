"""Who waits, and which of them form the next batch."""

import asyncio
import math
from collections import deque
from dataclasses import dataclass

from app.serving.types import Answer, Tensors


@dataclass(slots=True, eq=False)
class Pending:
    """One request in the queue. `deadline` and `arrived` are on the batcher's clock, in seconds."""

    inputs: Tensors
    rows: int
    future: "asyncio.Future[Answer]"
    arrived: float
    deadline: float = math.inf


def take(waiting: deque[Pending], budget: int, now: float) -> tuple[list[Pending], list[Pending], int]:
    """Remove the next batch from the front: (batch, late, rows removed).

    In order of arrival, at most `budget` rows but at least one request. Requests whose caller has gone are dropped,
    those past their deadline are returned as `late`.
    """
    batch: list[Pending] = []
    late: list[Pending] = []
    removed = 0
    while waiting:
        pending = waiting[0]
        if pending.future.done():
            pass
        elif pending.deadline <= now:
            late.append(pending)
        elif not batch or pending.rows <= budget:
            batch.append(pending)
            budget -= pending.rows
        else:
            break
        waiting.popleft()
        removed += pending.rows
    return batch, late, removed
