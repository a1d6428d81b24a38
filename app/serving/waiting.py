"""Who waits, and which of them form the next batch."""

import asyncio
import math
from collections import deque
from dataclasses import dataclass

from app.core.errors import PayloadTooLarge
from app.serving.types import Answer, Tensors

FIRST_PRIORITY = 1
# Of requests that name none: only those of the first priority go before them.
DEFAULT_PRIORITY = 2


@dataclass(slots=True, eq=False)
class Pending:
    """One request in the queue. `deadline` and `arrived` are on the batcher's clock, in seconds.

    Only requests of one `shape` (of a row of each input) can share a run. `priority` 1 goes first.
    """

    inputs: Tensors
    rows: int
    future: "asyncio.Future[Answer]"
    arrived: float
    deadline: float = math.inf
    shape: tuple[tuple[int, ...], ...] = ()
    priority: int = DEFAULT_PRIORITY


def too_many_rows(rows: int, most: float) -> PayloadTooLarge:
    """The error of a request that can never fit its endpoint's queue."""
    return PayloadTooLarge(
        f"{rows} rows are more than the endpoint queues ({most}): send fewer rows per request, "
        "raise the endpoint's batching.max_queue, or use a batch prediction job"
    )


def put(waiting: deque[Pending], pending: Pending) -> None:
    """Add a request behind those that came before it, and before those of a lower priority."""
    later: list[Pending] = []
    while waiting and waiting[-1].priority > pending.priority:
        later.append(waiting.pop())
    waiting.append(pending)
    waiting.extend(reversed(later))


def rows_before(waiting: deque[Pending], priority: int) -> int:
    """How many rows wait that a request of this priority would not overtake."""
    rows = 0
    for pending in waiting:  # in the order of their priorities
        if pending.priority > priority:
            break
        rows += pending.rows
    return rows


def take(waiting: deque[Pending], budget: int, now: float) -> tuple[list[Pending], list[Pending], int]:
    """Remove the next batch from the front: (batch, late, rows removed).

    From the front, at most `budget` rows but at least one request, all of the first one's shape: those of other
    shapes keep their places. Requests whose caller has gone are dropped, those past their deadline returned as `late`.
    """
    batch: list[Pending] = []
    late: list[Pending] = []
    passed: list[Pending] = []
    removed = 0
    while waiting:
        pending = waiting[0]
        if pending.future.done():
            pass
        elif pending.deadline <= now:
            late.append(pending)
        elif batch and pending.shape != batch[0].shape:
            passed.append(waiting.popleft())
            continue
        elif not batch or pending.rows <= budget:
            batch.append(pending)
            budget -= pending.rows
        else:
            break
        waiting.popleft()
        removed += pending.rows
    waiting.extendleft(reversed(passed))
    return batch, late, removed
