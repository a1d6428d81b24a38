"""The batcher: a batch is what arrived while the last one ran.

It waits for nothing but those it has just answered (unless an endpoint asks for `max_delay_ms`), counts cost in rows,
and keeps callers apart: who is gone or late is dropped before the run, and a run that fails is run again in halves
until those that cause it are alone. Everything but the run itself happens on the event loop, so there is no lock.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial

from app.core.errors import AimassError, DeadlineExceeded, Overloaded
from app.serving.execution import Parted, Results, execute
from app.serving.gathering import Gathering
from app.serving.joining import joined
from app.serving.long_runs import LONG_S, LongRuns
from app.serving.pace import Pace
from app.serving.types import Answer, Batching, Plan, Tensors
from app.serving.waiting import DEFAULT_PRIORITY, Pending, put, rows_before, take, too_many_rows
from app.telemetry.metrics import ModelMetrics

_UNKNOWN_WAIT_S = 1.0  # what a caller is told to wait while nothing has run yet
_LONGEST_WAIT_S = 60.0  # … and at most: an estimate beyond it knows too little
_SPARE_S = 5e-3  # before a deadline: timers are late, and an answer has to be sent


class Batcher:
    """The queue and the lanes of one model."""

    def __init__(
        self,
        plan: Plan,
        limits: Batching,
        metrics: ModelMetrics,
        executor: Executor,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._plan = plan
        self._limits = limits
        self._metrics = metrics
        self._executor = executor
        self._clock = clock
        self._loop = asyncio.get_running_loop()  # to ask for it is a system call, which a request can do without
        self._waiting: deque[Pending] = deque()
        self._rows = 0  # that wait
        self._own: set[asyncio.Future[Answer]] = set()  # answers to the server's own rows, under way
        self._own_waiting: set[asyncio.Future[Answer]] = set()  # … that no run has yet
        self._room = limits.max_queue  # rows that may wait, with those of the server's own that do
        self._busy = 0  # lanes in use
        self._running: dict[asyncio.Future[Results], list[Pending]] = {}  # in lanes
        self._armed = False  # a pump is scheduled
        self._timer: asyncio.TimerHandle | None = None  # … for later
        self._due = 0.0  # … then, for those that wait for company
        self._latest = self._earliest = math.inf  # what it follows from: the longest wait, and the first deadline
        self._long_runs = LongRuns()
        # Called once runs have proven too long for the event loop; a method of its own would keep it in memory.
        self.leave_loop: Callable[[], None] | None = None
        # Called once a run had to be ended: makes the lane to run in from then on, since all lanes may be taken so.
        self.step_aside: Callable[[], Executor] | None = None
        self._ends: list[float] = []  # when the runs under way should be done
        # Makes the error of who comes after `abandon`: one that is kept would hold the frames that it was raised in.
        self._abandoned: Callable[[], AimassError] | None = None
        self._gathering = Gathering(plan.lanes)
        self.pace = Pace(plan.costs, limits.max_batch, plan.lanes, limits.p95_s)

    def infer(
        self, inputs: Tensors, rows: int, deadline: float = math.inf, priority: int = DEFAULT_PRIORITY
    ) -> Awaitable[Answer]:
        """Answer `rows` rows, those of `priority` 1 first.

        Overloaded when they do not fit the queue now or would come too late, PayloadTooLarge when they never can fit,
        DeadlineExceeded when the deadline has passed already, the error of `abandon` after that.
        """
        self._admit(rows, deadline, priority)
        if rows <= self._limits.max_batch:  # no coroutine around it: it would be 2 % of a small request
            return self._submit(inputs, rows, deadline, priority)
        parts = self._parts(inputs, rows, deadline, priority)  # their places are taken now
        return joined(parts, self._limits.max_answer)

    async def prove(self, inputs: Tensors, rows: int) -> Answer:
        """Answer rows of the server's own: they are never refused, and take no place in the queue from a caller.

        The error of `abandon` after that.
        """
        self.check_abandoned()
        parts = self._parts(inputs, rows)
        self._own.update(parts)
        self._own_waiting.update(parts)
        self._room += rows
        try:
            return await (parts[0] if len(parts) == 1 else joined(parts))
        finally:
            self._own.difference_update(parts)

    def check_room(self, deadline: float = math.inf, priority: int = DEFAULT_PRIORITY) -> None:
        """Raise, and count, what `infer` of one row would now: who asks learns it before his rows are read."""
        self._admit(1, deadline, priority)

    def check_abandoned(self) -> None:
        """Raise the error of `abandon` after that."""
        if self._abandoned is not None:
            raise self._abandoned()

    def replan(self, plan: Plan) -> None:
        """Run as the plan says from the next batch on."""
        self._plan = plan
        self._gathering.lanes = self.pace.lanes = plan.lanes

    def abandon(self, error: AimassError) -> None:
        """Answer everybody who waits, also for a run that does not end, and whoever comes later with the error."""
        self._abandoned = partial(type(error), error.detail, retry_after_s=error.retry_after_s)
        batches = [*self._running.values(), self._waiting]
        for pending in [pending for batch in batches for pending in batch]:
            if not pending.future.done():
                pending.future.set_exception(error)
        self._waiting.clear()
        self._metrics.queue_rows -= self._rows  # these outlive the batcher
        self._rows = 0
        self._own_left()

    def _parts(
        self, inputs: Tensors, rows: int, deadline: float = math.inf, priority: int = DEFAULT_PRIORITY
    ) -> "list[asyncio.Future[Answer]]":
        """The answers of a request by itself, of at most `max_batch` rows each; a model that does not batch has one."""
        limit = self._limits.max_batch
        if rows <= limit:
            return [self._submit(inputs, rows, deadline, priority)]
        return [
            self._submit(
                tuple([tensor[at : at + limit] for tensor in inputs]), min(limit, rows - at), deadline, priority
            )
            for at in range(0, rows, limit)
        ]

    def _submit(self, inputs: Tensors, rows: int, deadline: float, priority: int) -> "asyncio.Future[Answer]":
        future: asyncio.Future[Answer] = self._loop.create_future()
        shape = tuple([tensor.shape[1:] for tensor in inputs]) if self._limits.shapes_vary else ()
        now = self._clock()
        put(self._waiting, Pending(inputs, rows, future, now, deadline, shape, priority))
        self._rows += rows
        self._gathering.came(rows, now)
        self._metrics.queue_rows += rows
        if not self._armed or self._timer:
            self._arm(now, deadline)
        return future

    def _admit(self, rows: int, deadline: float, priority: int) -> None:
        """Refuse what cannot be answered, or not in time."""
        limits, waiting = self._limits, self._rows
        if self._abandoned is not None:
            raise self._abandoned()
        if waiting + rows > self._room:
            self._refuse_size(rows)
        if deadline == math.inf and limits.p95_s is None:
            return
        now = self._clock()
        if deadline <= now:
            self._metrics.rejected["deadline"] += 1
            raise DeadlineExceeded("the request's time had run out before it was whole")
        ahead = waiting
        if waiting and self._waiting[-1].priority > priority:
            ahead = rows_before(self._waiting, priority)
        if not ahead and not self._busy:
            return  # who finds nothing to wait for is let in, by which an estimate that is wrong comes right again
        expected_s = self.pace.expect(ahead, rows, self._busy_s(now))
        if now + expected_s > deadline:
            text = f"the answer would take {expected_s:.3f} s, longer than the request's time"
            raise self._refusal("deadline", text, expected_s)
        if not self.pace.keeps(expected_s):
            text = f"the answer would take {expected_s:.3f} s, longer than the endpoint's slo.p95_ms allows: " + (
                f"{ahead} rows go before" if ahead else "others are being answered"
            )
            raise self._refusal("slo", text, expected_s)

    def _refuse_size(self, rows: int) -> None:
        limits, waiting = self._limits, self._rows
        if rows > limits.max_queue:
            self._metrics.rejected["too_large"] += 1
            raise too_many_rows(rows, limits.max_queue)
        wait_s = self.pace.expect(waiting, 0, self._busy_s(self._clock())) or _UNKNOWN_WAIT_S
        callers = waiting + limits.max_queue - self._room
        raise self._refusal("queue_full", f"{callers} rows wait already, of {limits.max_queue} allowed", wait_s)

    def _refusal(self, reason: str, text: str, wait_s: float) -> Overloaded:
        """The error of a request that is counted as refused."""
        self._metrics.rejected[reason] += 1
        return Overloaded(text, retry_after_s=min(wait_s, _LONGEST_WAIT_S))

    def _busy_s(self, now: float) -> float:
        """Seconds until a lane should be free."""
        return max(0.0, min(self._ends) - now) if self._busy >= self._plan.lanes and self._ends else 0.0

    def _arm(self, now: float, deadline: float) -> None:
        """Run what waits, with a request that has come `now`."""
        if self._limits.max_delay_ms and self._rows < self._limits.max_batch:
            self._wait_for_company(now, deadline)
        else:
            if self._timer:
                self._timer.cancel()
                self._timer = None
            self._loop.call_soon(self._pump)  # after the requests that this turn of the loop has still to read
        self._armed = True

    def _wait_for_company(self, now: float, deadline: float) -> None:
        """Set the timer, or forward: nobody's time may run out over it, nor that of the promise."""
        if self._limits.p95_s is not None:
            deadline = min(deadline, now + self._limits.p95_s)
        if not self._armed:
            self._latest, self._earliest = now + self._limits.max_delay_ms / 1e3, math.inf
        self._earliest = min(self._earliest, deadline)
        due = min(self._latest, self._earliest - self.pace.cost(self._rows) - _SPARE_S)
        if self._armed and due >= self._due:
            return
        if self._timer:
            self._timer.cancel()
        self._due = due
        self._timer = self._loop.call_later(max(0.0, due - now), self._pump)

    def _pump(self) -> None:
        if self._timer:  # it may be another's, who waits no longer
            self._timer.cancel()
        self._armed, self._timer = False, None
        if self._plan.inline:
            if batch := self._next(self.pace.batch):
                self._run_here(batch)
            if self._waiting:  # the next batch after whatever else the loop has to do
                self._armed = True
                self._loop.call_soon(self._pump)
            return
        while self._waiting and self._busy < self._plan.lanes:
            now = self._clock()
            if wait_s := self._gathering.wait_s(self._rows, self.pace.batch, now):
                self._armed, self._timer = True, self._loop.call_later(wait_s, self._gathered)
                self._due = self._latest = now + wait_s
                self._earliest = math.inf
                return
            run, lanes = self._plan.run, 1
            if self._plan.alone and not self._busy and len(self._waiting) == 1:
                run, lanes = self._plan.alone, self._plan.lanes
            # All lanes have the same share, so that all cores work.
            if not (batch := self._next(min(self.pace.batch, self._gathering.share(self._rows)))):
                break
            self._busy += lanes
            started, rows = self._clock(), sum(pending.rows for pending in batch)
            self._gathering.started(rows)
            end = started + self.pace.cost(rows)
            self._ends.append(end)
            job = self._loop.run_in_executor(self._executor, execute, run, batch, self._clock)
            self._running[job] = batch
            job.add_done_callback(partial(self._done, batch, rows, started, end, lanes))

    def _run_here(self, batch: list[Pending]) -> None:
        """Run a batch on the event loop; once a run had to be ended there, or a few took long, no more is run on it."""
        started = self._clock()
        try:
            results = execute(self._plan.run, batch, self._clock, on_loop=True)
        except DeadlineExceeded as error:
            (self.leave_loop or self._leave_loop)()
            if len(batch) == 1:
                self._finish(batch, started, [error])
            else:
                self._put_back(batch)
            return
        took_s = self._finish(batch, started, results)
        if took_s > LONG_S and self._long_runs.too_many(self._plan.run, batch, self._clock):
            (self.leave_loop or self._leave_loop)()

    def _leave_loop(self) -> None:
        self.replan(replace(self._plan, inline=False))

    def _put_back(self, batch: list[Pending]) -> None:
        """Let the requests of a batch be run first, each by itself: one of them does not end."""
        for at, pending in enumerate(batch):
            pending.shape = ((-1 - at,),)  # no other has it, so that they share no run
            if pending.deadline < math.inf:  # nobody watches over what was to be answered at once
                self._loop.call_later(max(0.0, pending.deadline - self._clock()), self._expire, pending)
        self._waiting.extendleft(reversed(batch))
        rows = sum(pending.rows for pending in batch)
        self._rows += rows
        self._metrics.queue_rows += rows
        self._own_waiting |= self._own & {pending.future for pending in batch}
        self._own_left()

    def _next(self, budget: int) -> list[Pending]:
        batch, late, removed = take(self._waiting, budget, self._clock())
        self._rows -= removed
        self._metrics.queue_rows -= removed
        if self._own_waiting:
            self._own_left()
        for pending in late:
            self._expire(pending)
        return batch

    def _expire(self, pending: Pending) -> None:
        if not pending.future.done():
            self._metrics.rejected["deadline"] += 1
            pending.future.set_exception(DeadlineExceeded("the request's time ran out while it waited"))

    def _own_left(self) -> None:
        """Make room for those of the server's own rows that still wait, also if nobody waits for their answer."""
        own = [pending for pending in self._waiting if pending.future in self._own_waiting]
        self._own_waiting = {pending.future for pending in own}
        self._room = self._limits.max_queue + sum(pending.rows for pending in own)

    def _done(
        self,
        batch: list[Pending],
        rows: int,
        started: float,
        end: float,
        lanes: int,
        job: "asyncio.Future[Results]",
    ) -> None:
        self._busy -= lanes
        self._ends.remove(end)
        del self._running[job]
        self._finish(batch, started, job.result())
        self._gathering.ended(rows, self._clock(), self.pace.cost(rows))
        self._pump()

    def _gathered(self) -> None:
        self._gathering.give_up()
        self._pump()

    def _finish(self, batch: list[Pending], started: float, results: Results) -> float:
        """Answer those of the batch; how long it took."""
        rows, now, failed = 0, self._clock(), False
        for pending, result in zip(batch, results, strict=True):
            rows += pending.rows
            self.pace.took(now, now - pending.arrived)
            if isinstance(result, Exception):
                failed = True
                if not pending.future.done():
                    pending.future.set_exception(result)
            elif not pending.future.done():
                result.queue_s = started - pending.arrived
                pending.future.set_result(result)
        done = results[0]
        if failed or self._own or isinstance(results, Parted) or isinstance(done, Exception):
            self._count(batch, results)
        else:
            self._metrics.ran(rows, done.batch_s, done.compute_s)
        self.pace.ran(rows, max(now - started, 1e-6))
        return now - started

    def _count(self, batch: list[Pending], results: Results) -> None:
        """Count the runs that gave answers, with the rows of callers alone. One that had to be ended may be again."""
        ended = (isinstance(results, Parted) and results.ended) or isinstance(results[0], DeadlineExceeded)
        if ended and self.step_aside is not None:
            self._executor, self.step_aside = self.step_aside(), None
        at = 0
        for size in results.sizes if isinstance(results, Parted) else [len(batch)]:
            done = results[at]
            rows = sum(pending.rows for pending in batch[at : at + size] if pending.future not in self._own)
            if rows and not isinstance(done, Exception):
                self._metrics.ran(rows, done.batch_s, done.compute_s)
            at += size
