"""Who is let into the batcher's queue, who is refused there and with which words."""

import asyncio

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from app.core.errors import DeadlineExceeded, Overloaded, PayloadTooLarge
from app.serving.batcher import Batcher
from app.serving.types import Batching, Plan
from app.telemetry.metrics import ServingMetrics
from tests.support.batching import Clock, ManualLanes, Model, build, check, rows, turns


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


async def test_a_request_that_can_never_fit_is_too_large():
    batcher, _, _ = build(Model(), Batching(4, 10))
    with pytest.raises(PayloadTooLarge, match="11 rows are more than the endpoint queues"):
        await batcher.infer((rows(11),), 11)


async def test_requests_larger_than_a_batch_have_their_places_at_once():
    batcher, _, _ = build(Model(), Batching(4, 10))
    large = rows(8)
    first = asyncio.ensure_future(batcher.infer((large,), 8))
    with pytest.raises(Overloaded, match="8 rows wait already, of 10 allowed"):
        batcher.infer((rows(8),), 8)
    check(await first, large)


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


async def test_nobody_is_told_to_come_back_later_than_in_a_minute():
    batcher, lanes, clock = build(Model(), Batching(1, 2), lanes=1)
    running = asyncio.ensure_future(batcher.infer((rows(1),), 1))
    await turns()
    clock.now += 1000
    await lanes.run_one()
    await running
    waiting = [asyncio.ensure_future(batcher.infer((rows(1),), 1)) for _ in range(2)]
    await turns()
    with pytest.raises(Overloaded, match=r"the answer would take 3000\.000 s") as late:
        batcher.infer((rows(1),), 1, clock.now + 10)
    waiting.append(asyncio.ensure_future(batcher.infer((rows(1),), 1)))
    await turns()
    with pytest.raises(Overloaded, match="rows wait already") as full:
        batcher.infer((rows(1),), 1)
    assert (late.value.retry_after_s, full.value.retry_after_s) == (60.0, 60.0)
    while lanes.jobs:
        await lanes.run_one()
    await asyncio.gather(*waiting)


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


async def test_a_promise_that_a_run_under_way_breaks_is_refused_without_a_word_of_rows_that_wait():
    executor, clock = ManualLanes(), Clock()
    metrics = ServingMetrics(CollectorRegistry()).bind("e", "m", 1, "fp32")
    batcher = Batcher(Plan(Model(), lanes=1, costs={1: 0.09}), Batching(64, 100, p95_s=0.1), metrics, executor, clock)
    running = asyncio.ensure_future(batcher.infer((rows(1),), 1))
    await turns()
    with pytest.raises(Overloaded) as refused:
        batcher.check_room()
    assert refused.value.detail == (
        "the answer would take 0.180 s, longer than the endpoint's slo.p95_ms allows: others are being answered"
    )
    while executor.jobs:
        await executor.run_one()
    await running


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


@pytest.mark.parametrize("lanes", [0, 1])
async def test_the_servers_own_rows_are_never_refused_and_take_nobodys_place(lanes: int):
    model = Model()
    batcher, executor, _ = build(model, Batching(2, 3), lanes=lanes)
    blocker = [asyncio.ensure_future(batcher.infer((rows(2),), 2))]
    if lanes:
        await turns()
    own = rows(5)
    proof = asyncio.ensure_future(batcher.prove((own,), 5))
    await turns(1)
    sent = [rows(1) for _ in range(3 if lanes else 1)]
    waiting = [asyncio.ensure_future(batcher.infer((x,), 1)) for x in sent]
    if lanes:
        with pytest.raises(Overloaded, match="3 rows wait already, of 3 allowed"):
            batcher.infer((rows(1),), 1)
        with pytest.raises(PayloadTooLarge):
            batcher.infer((rows(4),), 4)
        assert batcher._metrics.rejected == {"queue_full": 1, "too_large": 1}
    while executor.jobs or not proof.done():
        await (executor.run_one() if executor.jobs else turns())
    check(await proof, own)
    for x, answer in zip(sent, await asyncio.gather(*waiting), strict=True):
        check(answer, x)
    await asyncio.gather(*blocker)
    assert (batcher._rows, batcher._room) == (0, 3)


@pytest.mark.parametrize("timed_out", [False, True])
async def test_the_servers_own_rows_have_their_place_while_they_wait_and_no_longer(*, timed_out: bool):
    """12 rows of its own and places for 4 of callers, before, during and after the runs of the former."""
    model = Model()
    batcher, lanes, _ = build(model, Batching(4, 4), lanes=1)
    asked = [asyncio.ensure_future(batcher.infer((rows(4),), 4))]
    await turns()
    proof = asyncio.ensure_future(batcher.prove((rows(12),), 12))
    await turns()
    if timed_out:
        proof.cancel()
        await turns()
    asked += [asyncio.ensure_future(batcher.infer((rows(1),), 1)) for _ in range(4)]
    for left in [] if timed_out else [12, 8, 4, 0]:
        assert batcher._rows == left + 4
        await refuse_one_more(batcher)
        await lanes.run_one()
    if timed_out:
        await refuse_one_more(batcher)
        await lanes.run_one()  # the callers' rows run: the proof's, which nobody waits for, are dropped
        asked += [asyncio.ensure_future(batcher.infer((rows(1),), 1)) for _ in range(4)]
        await refuse_one_more(batcher)
    while lanes.jobs:
        await lanes.run_one()
    await asyncio.gather(*asked)
    assert model.sizes == ([4, 4, 4] if timed_out else [4, 4, 4, 4, 4])
    assert (proof.cancelled(), proof.done()) == (timed_out, True)
    assert (batcher._rows, batcher._room, batcher._own_waiting) == (0, 4, set())


async def refuse_one_more(batcher: Batcher) -> None:
    with pytest.raises(Overloaded, match="4 rows wait already, of 4 allowed"):
        batcher.check_room()
