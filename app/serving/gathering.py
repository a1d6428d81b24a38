"""How long a free lane waits for callers who were just answered, where they have shown that they ask again at once.

Without it the first of them to come back gets a run of its own, and the others wait for it. A free lane waits until its
share of the rows that are on their way has come, for a tenth of the run that it has just done and no longer. It waits
only if most of those who were answered lately did come back so soon: a caller who is alone, or one of many who do not
know of each other, is never kept waiting.
"""

import math

_SHARE_OF_RUN = 0.1
_LEAST_S = 0.2e-3  # a shorter wait is not worth a timer
_MOST_S = 20e-3  # who comes back at all is there by then
_FAITHFUL = 0.5  # share of the rows that has to come back
_SMOOTHING = 0.2  # weight of the newest window


class Gathering:
    """Of one batcher, all rows counted; `lanes` is how many runs there may be at once. Times are on its clock."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self._running = 0
        self._answered = 0  # within the window that ends at `_until`
        self._returning = 0  # of these, not come again
        self._until = 0.0
        self._faith = 0.0  # what share of the answered rows has come back in time, lately

    def came(self, rows: int, now: float) -> None:
        """A request has come."""
        if self._answered:
            if now < self._until:
                self._returning = max(0, self._returning - rows)
            else:
                self.give_up()

    def started(self, rows: int) -> None:
        """A run has begun."""
        self._running += rows

    def ended(self, rows: int, now: float, cost_s: float) -> None:
        """A run of `rows` rows, which takes `cost_s`, has been answered."""
        self._running -= rows
        if now >= self._until:
            self.give_up()
        wait_s = min(cost_s * _SHARE_OF_RUN, _MOST_S)
        if wait_s >= _LEAST_S:
            self._answered += rows
            self._returning += rows
            self._until = now + wait_s

    def give_up(self) -> None:
        """The window is over: who has not come back is not waited for."""
        if self._answered:
            self._faith += (1 - self._returning / self._answered - self._faith) * _SMOOTHING
            self._answered = self._returning = 0

    def share(self, waiting: int) -> int:
        """The rows of the next run, if all lanes are to have as many."""
        returning = self._returning if self._faith > _FAITHFUL else 0
        return math.ceil((waiting + self._running + returning) / self.lanes)

    def wait_s(self, waiting: int, batch: int, now: float) -> float:
        """How long a free lane should wait for more than the rows that wait now; `batch` is the most of a run."""
        if not self._returning or self._faith <= _FAITHFUL or waiting >= min(batch, self.share(waiting)):
            return 0.0
        return max(0.0, self._until - now)
