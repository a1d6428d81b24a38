"""How long a run of so many rows takes, and so when a request that comes now will be answered.

Learned while the model is warmed up, and from every run after that. Where the warm-up ended before `max_batch`, since
runs had become long, and the last doubling of the rows brought next to no more of them a second, runs have no more rows
than that: a larger one would only answer later, and leave the processor's caches.

An endpoint with a promise (`p95_s`) gets from here the size of its runs and the word whether one more request can still
be answered in time; no knob is needed:

- Who comes just after a run has begun waits for it and then runs himself, so a run may take half of the promise. Of the
  sizes that keep this, the one with the most rows per second is the limit.
- A request is let in if its expected time, times a margin, is within the promise. The margin is found by stochastic
  approximation (Robbins and Monro, 1951): twice in the time of the promise it moves by how much more or less than one
  in 200 of those that were let in were late. It is never below 1: while nothing is late nothing is learned.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping

_LATE = 0.005  # share of the admitted; one in twenty would do, and one in a hundred is what people measure
_SMOOTHING = 0.1  # weight of the newest run
_STEP = 2.0  # times what was expected, at most, that one run makes of it: one that was held up says little of the next
_GAIN = 0.3  # of the margin, by which it moves when all are late
_WORTH = 1.05  # times the rows a second, for which a run is made twice as large
_MARGINS = (1.0, 8.0)
_FIRST_MARGIN = 1.25  # runs are never as even as the warm-up saw them


class Pace:
    """Of one model; all times are in seconds. `costs` are rows → seconds of a run, as far as they were measured."""

    def __init__(self, costs: Mapping[int, float], max_batch: int, lanes: int = 1, p95_s: float | None = None) -> None:
        self._sizes = sorted({*(1 << bit for bit in range(max_batch.bit_length())), max_batch})
        self._costs: list[float | None] = [costs.get(size) for size in self._sizes]
        self._seen = [False] * len(self._sizes)  # since the warm-up, in real traffic
        self._drift = 1.0  # how much slower runs are in traffic than they were at the warm-up
        self._max_batch = max_batch
        self.lanes = lanes
        self.p95_s = p95_s
        self.margin = _FIRST_MARGIN
        self._judged = self._late = 0  # requests, since the margin moved last
        self._moves_at = 0.0
        self.batch = _largest(costs, max_batch)  # rows that a run may have
        self._choose()

    def cost(self, rows: int) -> float:
        """Seconds of a run: between the sizes that are known, a straight line; 0 while nothing is known."""
        below: tuple[int, float] | None = None
        for at, size in enumerate(self._sizes):
            known = self._costs[at]
            if known is None:
                continue
            seconds = known if self._seen[at] else known * self._drift
            if size >= rows:
                if below is None or size == rows:
                    return seconds
                share = (rows - below[0]) / (size - below[0])
                return below[1] + share * (seconds - below[1])
            below = size, seconds
        return below[1] * rows / below[0] if below else 0.0

    def ran(self, rows: int, seconds: float) -> None:
        """Learn from a run."""
        at = min(bisect_left(self._sizes, rows), len(self._sizes) - 1)
        known = self._costs[at]
        if known and self._seen[at] and self._sizes[at] == rows:  # most runs
            self._costs[at] = min(known + (seconds - known) * _SMOOTHING, known * _STEP)
            self._choose()
            return
        expected = self.cost(rows)
        if expected:
            step = min(1 + (seconds / expected - 1) * _SMOOTHING, _STEP)
            seconds = self.cost(self._sizes[at]) * step  # before the drift, which would count twice, has changed
            if not (self._seen[at] and at and self._seen[at - 1]):  # else it had no part in what was expected
                self._drift *= step
        self._costs[at], self._seen[at] = seconds, True
        self._choose()

    def expect(self, ahead: int, rows: int, busy_s: float = 0.0) -> float:
        """Seconds until `rows` rows behind `ahead` others are answered, if the lanes are busy for `busy_s` yet."""
        total, round_ = ahead + rows, self.batch * self.lanes
        before = (max(1, total) - 1) // round_
        last = math.ceil((total - before * round_) / self.lanes)
        return busy_s + before * self.cost(self.batch) + self.cost(last)

    def keeps(self, expected: float) -> bool:
        """True if a request that is expected to take so long will keep the promise."""
        return self.p95_s is None or expected * self.margin <= self.p95_s

    def took(self, now: float, seconds: float) -> None:
        """Learn from a request that was let in and answered `now`; only where there is a promise."""
        if self.p95_s is None:
            return
        self._judged += 1
        self._late += seconds > self.p95_s
        if now >= self._moves_at:
            self.margin *= 1 + _GAIN * (self._late / self._judged - _LATE)
            self.margin = min(max(self.margin, _MARGINS[0]), _MARGINS[1])
            self._judged = self._late = 0
            self._moves_at = now + self.p95_s / 2

    def _choose(self) -> None:
        if self.p95_s is None:
            return
        best = 0.0
        self.batch = 1
        for size in self._sizes:
            seconds = self.cost(size)
            if seconds and 2 * seconds <= self.p95_s and size / seconds >= best:
                best, self.batch = size / seconds, size
        if not any(self._costs):
            self.batch = self._max_batch


def _largest(costs: Mapping[int, float], max_batch: int) -> int:
    """The most rows of a run that are worth it, without a promise; all that may be where nothing speaks against it."""
    last = max(costs, default=max_batch)
    half = costs.get(last // 2)
    if last < max_batch and half is not None and 2 * half < _WORTH * costs[last]:
        return last
    return max_batch
