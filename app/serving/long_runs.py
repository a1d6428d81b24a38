"""Runs on the event loop that take far longer than those that the model was planned by: rows of another shape can."""

import time
from collections.abc import Callable

from app.core.errors import DeadlineExceeded
from app.serving.execution import execute
from app.serving.plan import INLINE_BATCH_S
from app.serving.types import Run
from app.serving.waiting import Pending

LONG_S = 3 * INLINE_BATCH_S
_MANY = 3


class LongRuns:
    """Of one model."""

    def __init__(self) -> None:
        self._seen = 0

    def too_many(self, run: Run, batch: list[Pending], clock: Callable[[], float]) -> bool:
        """True if this batch, which took longer than LONG_S, is one too many.

        A machine that is busy elsewhere holds up any run, so it is run again by this thread's own time: a few times in
        the life of a model that is too long, and a short run otherwise.
        """
        begun = time.thread_time()
        try:
            execute(run, batch, clock, on_loop=True)
        except DeadlineExceeded:
            return True
        self._seen += time.thread_time() - begun > LONG_S
        return self._seen >= _MANY
