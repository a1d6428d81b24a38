"""The batcher with a clock and lanes that the test moves by hand."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from app.core.errors import DeadlineExceeded, InvalidTensor, Overloaded, PayloadTooLarge
from app.serving.batcher import Batcher
from app.serving.types import Answer, Batching, Plan, Tensors
from app.serving.waiting import Pending, take
from app.telemetry.metrics import ServingMetrics

RNG = np.random.default_rng(7)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class ManualLanes(Executor):
    """Runs a job only when told to."""

    def __init__(self) -> None:
        self.jobs: deque[tuple[Future[Any], Callable[[], Any]]] = deque()

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        job: Future[Any] = Future()
        self.jobs.append((job, lambda: fn(*args, **kwargs)))
        return job

    async def run_one(self) -> None:
        job, work = self.jobs.popleft()
        job.set_result(work())
        await turns()


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Model:
    """Doubles its rows; remembers the size of each run; refuses rows that hold `poison`."""

    def __init__(self, poison: float | None = None) -> None:
        self.sizes: list[int] = []
        self.poison = poison

    def __call__(self, inputs: Tensors) -> Tensors:
        self.sizes.append(len(inputs[0]))
        if self.poison is not None and (inputs[0] == self.poison).any():
            raise InvalidTensor("poison")
        return (inputs[0] * 2, inputs[0].sum(axis=1))


def build(
    model: Model, limits: Batching, *, lanes: int = 0, alone: Model | None = None
) -> tuple[Batcher, ManualLanes, Clock]:
    executor, clock = ManualLanes(), Clock()
    metrics = ServingMetrics(CollectorRegistry()).bind("e", "m", 1, "fp32")
    plan = Plan(model, inline=True) if not lanes else Plan(model, lanes=lanes, alone=alone)
    return Batcher(plan, limits, metrics, executor, clock), executor, clock


def rows(count: int) -> np.ndarray:
    return RNG.normal(size=(count, 4)).astype(np.float32)


def check(answer: Answer, sent: np.ndarray) -> None:
    np.testing.assert_array_equal(answer.outputs[0], sent * 2)
    np.testing.assert_array_equal(answer.outputs[1], sent.sum(axis=1))


def pending(count: int, *, deadline: float = float("inf"), gone: bool = False) -> Pending:
    future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    if gone:
        future.cancel()
    return Pending((rows(count),), count, future, 0.0, deadline)


class TestTake:
    async def test_fills_the_budget_in_order(self):
        a, b, c = pending(3), pending(2), pending(1)
        waiting = deque([a, b, c])
        assert take(waiting, 5, now=0) == ([a, b], [], 5)
        assert list(waiting) == [c]

    async def test_does_not_overtake_to_fill_up(self):
        a, b, c = pending(3), pending(4), pending(1)
        waiting = deque([a, b, c])
        assert take(waiting, 5, now=0) == ([a], [], 3)

    async def test_takes_one_that_is_larger_than_the_budget(self):
        a, b = pending(9), pending(1)
        assert take(deque([a, b]), 5, now=0) == ([a], [], 9)

    async def test_drops_the_gone_and_returns_the_late(self):
        gone, late, good = pending(1, gone=True), pending(2, deadline=9), pending(3, deadline=11)
        assert take(deque([gone, late, good]), 3, now=10) == ([good], [late], 6)

    async def test_nothing_waits(self):
        assert take(deque(), 5, now=0) == ([], [], 0)


async def test_inline_requests_of_one_turn_share_a_run_and_keep_their_answers():
    model = Model()
    batcher, _, _ = build(model, Batching(64, 1000))
    sent = [rows(int(n)) for n in RNG.integers(1, 4, 20)]
    answers = await asyncio.gather(*(batcher.infer((x,), len(x)) for x in sent))
    assert model.sizes == [sum(map(len, sent))]
    for x, answer in zip(sent, answers, strict=True):
        check(answer, x)


async def test_inline_batches_respect_max_batch():
    model = Model()
    batcher, _, _ = build(model, Batching(4, 1000))
    sent = [rows(1) for _ in range(10)]
    answers = await asyncio.gather(*(batcher.infer((x,), 1) for x in sent))
    assert model.sizes == [4, 4, 2]
    for x, answer in zip(sent, answers, strict=True):
        check(answer, x)


async def test_a_batch_is_what_arrived_while_the_last_one_ran():
    model = Model()
    batcher, lanes, _ = build(model, Batching(64, 1000), lanes=1)
    sent = [rows(1) for _ in range(6)]
    tasks = [asyncio.ensure_future(batcher.infer((sent[0],), 1))]
    await turns()
    tasks += [asyncio.ensure_future(batcher.infer((x,), 1)) for x in sent[1:]]
    await turns()
    assert len(lanes.jobs) == 1
    await lanes.run_one()
    await lanes.run_one()
    assert model.sizes == [1, 5]
    for x, answer in zip(sent, await asyncio.gather(*tasks), strict=True):
        check(answer, x)


async def test_free_lanes_share_what_waits():
    model = Model()
    batcher, lanes, _ = build(model, Batching(64, 1000), lanes=2)
    sent = [rows(1) for _ in range(6)]
    tasks = [asyncio.ensure_future(batcher.infer((x,), 1)) for x in sent]
    await turns()
    assert len(lanes.jobs) == 2
    lanes.jobs.reverse()  # the second lane ends first
    await lanes.run_one()
    await lanes.run_one()
    assert model.sizes == [3, 3]
    for x, answer in zip(sent, await asyncio.gather(*tasks), strict=True):
        check(answer, x)


async def test_a_lonely_request_gets_all_cores_and_company_the_lanes():
    narrow, wide = Model(), Model()
    batcher, lanes, _ = build(narrow, Batching(64, 1000), lanes=2, alone=wide)
    sent = [rows(1) for _ in range(5)]
    tasks = [asyncio.ensure_future(batcher.infer((sent[0],), 1))]
    await turns()
    tasks += [asyncio.ensure_future(batcher.infer((x,), 1)) for x in sent[1:]]
    await turns()
    assert len(lanes.jobs) == 1  # the wide run holds every lane
    while lanes.jobs:
        await lanes.run_one()
    assert (wide.sizes, narrow.sizes) == ([1], [2, 2])
    for x, answer in zip(sent, await asyncio.gather(*tasks), strict=True):
        check(answer, x)


async def test_a_cancelled_caller_hurts_nobody_and_is_not_run():
    model = Model()
    batcher, lanes, _ = build(model, Batching(64, 1000), lanes=1)
    first = asyncio.ensure_future(batcher.infer((rows(1),), 1))
    await turns()
    sent = [rows(1) for _ in range(3)]
    tasks = [asyncio.ensure_future(batcher.infer((x,), 1)) for x in sent]
    await turns()
    tasks[1].cancel()
    await lanes.run_one()
    await lanes.run_one()
    await first
    check(await tasks[0], sent[0])
    check(await tasks[2], sent[2])
    assert model.sizes == [1, 2]


async def test_a_caller_cancelled_during_the_run_leaves_the_others_their_answers():
    model = Model()
    batcher, lanes, _ = build(model, Batching(64, 1000), lanes=1)
    sent = [rows(2), rows(1), rows(3)]
    tasks = [asyncio.ensure_future(batcher.infer((x,), len(x))) for x in sent]
    await turns()
    tasks[0].cancel()
    await turns()
    await lanes.run_one()
    check(await tasks[1], sent[1])
    check(await tasks[2], sent[2])
    follower = rows(1)
    task = asyncio.ensure_future(batcher.infer((follower,), 1))
    await turns()
    await lanes.run_one()
    check(await task, follower)


@pytest.mark.parametrize("lanes", [0, 1])
async def test_one_bad_request_fails_alone(lanes: int):
    model = Model(poison=666.0)
    batcher, executor, _ = build(model, Batching(64, 1000), lanes=lanes)
    sent = [rows(2) for _ in range(5)]
    sent[3][1, 2] = 666.0
    tasks = [asyncio.ensure_future(batcher.infer((x,), 2)) for x in sent]
    await turns()
    while executor.jobs:
        await executor.run_one()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[3], InvalidTensor)
    for at in (0, 1, 2, 4):
        check(results[at], sent[at])  # type: ignore[arg-type]


async def test_a_late_request_is_refused_and_not_run():
    model = Model()
    batcher, lanes, clock = build(model, Batching(64, 1000), lanes=1)
    first = asyncio.ensure_future(batcher.infer((rows(1),), 1))
    await turns()
    late = asyncio.ensure_future(batcher.infer((rows(1),), 1, deadline=clock.now + 5))
    in_time = rows(1)
    good = asyncio.ensure_future(batcher.infer((in_time,), 1, deadline=clock.now + 50))
    await turns()
    clock.now += 10
    await lanes.run_one()
    await lanes.run_one()
    with pytest.raises(DeadlineExceeded):
        await late
    check(await good, in_time)
    await first
    assert model.sizes == [1, 1]


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back():
    model = Model()
    batcher, lanes, clock = build(model, Batching(10, 20), lanes=1)
    running = asyncio.ensure_future(batcher.infer((rows(10),), 10))
    await turns()
    clock.now += 2  # ten rows take two seconds: five rows a second
    await lanes.run_one()
    await running
    blocker = asyncio.ensure_future(batcher.infer((rows(10),), 10))
    await turns()
    waiting = [asyncio.ensure_future(batcher.infer((rows(10),), 10)) for _ in range(2)]
    await turns()
    with pytest.raises(Overloaded) as refused:
        await batcher.infer((rows(1),), 1)
    assert refused.value.retry_after_s == pytest.approx(6.0)  # of the run under way, and of two with the rows that wait
    while lanes.jobs:
        await lanes.run_one()
    await asyncio.gather(blocker, *waiting)
    task = asyncio.ensure_future(batcher.infer((rows(1),), 1))
    await turns()
    await lanes.run_one()
    await task


async def test_gone_callers_free_their_places_in_the_queue():
    batcher, lanes, _ = build(Model(), Batching(4, 8), lanes=1)
    running = asyncio.ensure_future(batcher.infer((rows(1),), 1))
    await turns()
    gone = [asyncio.ensure_future(batcher.infer((rows(4),), 4)) for _ in range(2)]
    await turns()
    for task in gone:
        task.cancel()
    await lanes.run_one()
    await running
    after = rows(4)
    task = asyncio.ensure_future(batcher.infer((after,), 4))
    await turns()
    await lanes.run_one()
    check(await task, after)


async def test_a_request_larger_than_a_batch_is_split_and_joined_in_order():
    model = Model()
    batcher, _, _ = build(model, Batching(4, 100))
    large, small = rows(11), rows(2)
    answers = await asyncio.gather(batcher.infer((large,), 11), batcher.infer((small,), 2))
    check(answers[0], large)
    check(answers[1], small)
    assert max(model.sizes) <= 4


async def test_a_request_that_can_never_fit_is_too_large():
    batcher, _, _ = build(Model(), Batching(4, 10))
    with pytest.raises(PayloadTooLarge, match="11 rows are more than the endpoint queues"):
        await batcher.infer((rows(11),), 11)


async def test_a_split_request_with_a_bad_part_fails_as_a_whole_and_leaves_nothing_behind():
    model = Model(poison=666.0)
    batcher, _, _ = build(model, Batching(2, 100))
    bad, good = rows(6), rows(1)
    bad[5, 0] = 666.0
    results = await asyncio.gather(batcher.infer((bad,), 6), batcher.infer((good,), 1), return_exceptions=True)
    assert isinstance(results[0], InvalidTensor)
    check(results[1], good)  # type: ignore[arg-type]
    assert batcher._rows == 0


async def test_max_delay_lets_the_first_wait_for_company():
    model = Model()
    batcher, _, _ = build(model, Batching(8, 100, max_delay_ms=20))
    first, second = rows(1), rows(1)
    one = asyncio.ensure_future(batcher.infer((first,), 1))
    await turns(20)
    assert model.sizes == []
    two = asyncio.ensure_future(batcher.infer((second,), 1))
    check(await one, first)
    check(await two, second)
    assert model.sizes == [2]


async def test_max_delay_is_not_waited_for_once_the_batch_is_full():
    model = Model()
    batcher, _, _ = build(model, Batching(3, 100, max_delay_ms=60_000))
    sent = [rows(1) for _ in range(3)]
    async with asyncio.timeout(30):
        answers = await asyncio.gather(*(batcher.infer((x,), 1) for x in sent))
    assert model.sizes == [3]
    for x, answer in zip(sent, answers, strict=True):
        check(answer, x)


async def test_random_traffic_never_crosses_answers():
    model = Model()
    batcher, lanes, _ = build(model, Batching(7, 10_000), lanes=3)
    sent = [rows(int(n)) for n in RNG.integers(1, 12, 200)]
    tasks = []
    for x in sent:
        tasks.append(asyncio.ensure_future(batcher.infer((x,), len(x))))
        if RNG.random() < 0.3:
            await turns(2)
        if RNG.random() < 0.2:
            tasks[int(RNG.integers(len(tasks)))].cancel()
        if lanes.jobs and RNG.random() < 0.5:
            lanes.jobs.rotate(int(RNG.integers(3)))
            await lanes.run_one()
    while lanes.jobs:
        await lanes.run_one()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    answered = [(r, x) for r, x in zip(results, sent, strict=True) if isinstance(r, Answer)]
    assert len(answered) > 100
    for answer, x in answered:
        check(answer, x)
    assert batcher._rows == 0
    assert batcher._busy == 0


async def test_priority_one_goes_first_and_the_rest_in_order_of_arrival():
    model = Model()
    batcher, lanes, _ = build(model, Batching(1, 100), lanes=1)
    sent = [rows(1) for _ in range(6)]
    blocker = asyncio.ensure_future(batcher.infer((sent[0],), 1))
    await turns()
    order: list[int] = []
    waiting = []
    for at, priority in enumerate((3, 2, 1, 2, 1), 1):
        job = asyncio.ensure_future(batcher.infer((sent[at],), 1, priority=priority))
        job.add_done_callback(lambda _, at=at: order.append(at))
        waiting.append(job)
    for _ in range(6):
        await lanes.run_one()
    assert order == [3, 5, 2, 4, 1]
    for answer, rows_ in zip([await blocker, *[await job for job in waiting]], sent, strict=True):
        check(answer, rows_)


async def test_a_deadline_that_has_passed_or_cannot_be_kept_is_refused_at_once():
    model = Model()
    batcher, lanes, clock = build(model, Batching(10, 100), lanes=1)
    with pytest.raises(DeadlineExceeded, match="before it was whole"):
        batcher.infer((rows(1),), 1, clock.now - 1)
    running = asyncio.ensure_future(batcher.infer((rows(10),), 10))
    await turns()
    clock.now += 2
    await lanes.run_one()
    await running
    blocker = asyncio.ensure_future(batcher.infer((rows(10),), 10))
    await turns()
    with pytest.raises(Overloaded, match="longer than the request's time") as refused:
        batcher.infer((rows(10),), 10, clock.now + 3)  # two seconds of the run under way and two of its own
    assert refused.value.retry_after_s == pytest.approx(4.0)
    in_time = asyncio.ensure_future(batcher.infer((rows(10),), 10, clock.now + 5))
    await turns()
    for _ in range(2):
        clock.now += 1
        await lanes.run_one()
    await blocker
    await in_time
    assert batcher._metrics.rejected == {"deadline": 2}


async def test_who_finds_nothing_to_wait_for_is_let_in_whatever_is_expected():
    model = Model()
    batcher, lanes, clock = build(model, Batching(8, 100, p95_s=0.001), lanes=1)
    for _ in range(3):
        alone = asyncio.ensure_future(batcher.infer((rows(1),), 1))
        await turns()
        clock.now += 5
        await lanes.run_one()
        await alone


async def test_a_promise_is_kept_by_refusing_what_would_come_too_late():
    """Twice what the model can do, in virtual time: 95 of 100 admitted are in time, and the lane never idles."""
    model = Model()
    costs = {rows_: 0.010 + 0.001 * rows_ for rows_ in (1, 2, 4, 8, 16, 32, 64)}
    executor, clock = ManualLanes(), Clock()
    metrics = ServingMetrics(CollectorRegistry()).bind("e", "m", 1, "fp32")
    plan = Plan(model, lanes=1, costs=costs)
    batcher = Batcher(plan, Batching(64, 10_000, p95_s=0.1), metrics, executor, clock)
    assert batcher.pace.batch == 32
    took: list[float] = []
    refused = 0
    jobs = []

    async def ask() -> None:
        begun = clock.now
        await batcher.infer((rows(1),), 1)
        took.append(clock.now - begun)

    run_ends, noise = None, np.random.default_rng(5)
    for _ in range(9000):
        clock.now += 1 / 1500  # 762 rows a second are possible at 32 rows a run
        job = asyncio.create_task(ask())
        jobs.append(job)
        await turns()
        if executor.jobs and run_ends is None:
            size = len(executor.jobs[0][1]())  # peek: running twice changes nothing but the model's log
            run_ends = clock.now + (0.010 + 0.001 * size) * noise.uniform(0.8, 1.4)
        if run_ends is not None and clock.now >= run_ends:
            await executor.run_one()
            run_ends = None
    for job in jobs:
        job.cancel()
    for outcome in await asyncio.gather(*jobs, return_exceptions=True):
        refused += isinstance(outcome, Overloaded)
    assert np.quantile(took[500:], 0.95) <= 0.1  # after what it needs to learn how uneven the runs are
    assert refused > 500
    assert len(took) / 6 > 0.85 * 16 / (0.026 * 1.1)
    assert metrics.rejected["slo"] == refused


async def test_room_for_one_row_is_asked_for_by_the_rule_of_the_queue():
    batcher, lanes, clock = build(Model(), Batching(4, 8), lanes=1)
    running = asyncio.ensure_future(batcher.infer((rows(4),), 4))
    await turns()
    waiting = [asyncio.ensure_future(batcher.infer((rows(size),), size)) for size in (4, 3)]
    await turns()
    batcher.check_room()
    with pytest.raises(DeadlineExceeded):
        batcher.check_room(clock.now)
    waiting.append(asyncio.ensure_future(batcher.infer((rows(1),), 1)))
    await turns()
    told: list[tuple[str, float | None]] = []
    for ask in (batcher.check_room, lambda: batcher.infer((rows(1),), 1)):
        with pytest.raises(Overloaded) as refused:
            ask()
        told.append((refused.value.detail, refused.value.retry_after_s))
    assert told[0] == told[1]
    assert batcher._metrics.rejected == {"deadline": 1, "queue_full": 2}
    while lanes.jobs:
        await lanes.run_one()
    batcher.check_room()
    await asyncio.gather(running, *waiting)


@pytest.mark.parametrize("priority", [1, 2, 3])
async def test_a_promise_has_room_for_those_who_go_first(priority: int):
    model = Model()
    executor, clock = ManualLanes(), Clock()
    metrics = ServingMetrics(CollectorRegistry()).bind("e", "m", 1, "fp32")
    plan = Plan(model, lanes=1, costs={1: 0.04, 2: 0.04, 4: 0.04})
    batcher = Batcher(plan, Batching(4, 100, p95_s=0.2), metrics, executor, clock)
    jobs = [asyncio.ensure_future(batcher.infer((rows(4),), 4)) for _ in range(2)]
    await turns()
    jobs.append(asyncio.ensure_future(batcher.infer((rows(4),), 4)))
    jobs.append(asyncio.ensure_future(batcher.infer((rows(4),), 4, priority=1)))
    await turns()
    for ask in (
        batcher.check_room,
        lambda *how: jobs.append(asyncio.ensure_future(batcher.infer((rows(1),), 1, *how))),
    ):
        if priority == 1:  # the run under way, the one that goes first, and its own: 0.15 s with the margin
            ask(clock.now + 100, priority)
        else:
            with pytest.raises(Overloaded, match=r"slo\.p95_ms"):
                ask(clock.now + 100, priority)
    while executor.jobs:
        await executor.run_one()
    await asyncio.gather(*jobs)
