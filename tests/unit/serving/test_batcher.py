"""The batcher's runs, with a clock and lanes that the test moves by hand."""

import asyncio
import math
from collections import deque

import numpy as np
import pytest

from app.core.errors import DeadlineExceeded, InvalidTensor, Unavailable
from app.serving.batcher import Batcher
from app.serving.types import Answer, Batching, Tensors
from app.serving.waiting import take
from tests.support.batching import RNG, ManualLanes, Model, build, check, pending, rows, turns


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
    assert tasks[0].cancelled()
    check(await tasks[1], sent[1])
    check(await tasks[2], sent[2])
    follower = rows(1)
    task = asyncio.ensure_future(batcher.infer((follower,), 1))
    await turns()
    await lanes.run_one()
    check(await task, follower)
    assert model.sizes == [6, 1]  # the row of the one that was cancelled was in the run


async def outcomes(batcher: Batcher, lanes: ManualLanes, sent: list[np.ndarray]) -> list[Answer | BaseException]:
    """What becomes of these requests, which come at once."""
    tasks = [asyncio.ensure_future(batcher.infer((x,), len(x))) for x in sent]
    await turns()
    while lanes.jobs:
        await lanes.run_one()
    return await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("lanes", [0, 1])
async def test_one_bad_request_fails_alone(lanes: int):
    model = Model(poison=666.0)
    batcher, executor, _ = build(model, Batching(64, 1000), lanes=lanes)
    sent = [rows(2) for _ in range(5)]
    sent[3][1, 2] = 666.0
    results = await outcomes(batcher, executor, sent)
    assert isinstance(results[3], InvalidTensor)
    for at in (0, 1, 2, 4):
        check(results[at], sent[at])  # type: ignore[arg-type]


@pytest.mark.parametrize("lanes", [0, 1])
async def test_one_bad_request_is_found_by_halves_unless_it_hangs(lanes: int):
    for error, sizes in (
        (InvalidTensor("poison"), [8, 4, 4, 2, 1, 1, 2]),
        (DeadlineExceeded("it hangs"), [8, 1, 1, 1, 1, 1, 1, 1, 1]),
    ):
        model = Model(poison=666.0, error=error)
        batcher, executor, _ = build(model, Batching(64, 1000), lanes=lanes)
        sent = [rows(1) for _ in range(8)]
        sent[4][0, 0] = 666.0
        results = await outcomes(batcher, executor, sent)
        assert [at for at, result in enumerate(results) if result is error] == [4]
        assert model.sizes == sizes


class Hanging(Model):
    """Hangs at 666, and refuses 13 before that."""

    def __call__(self, inputs: Tensors) -> Tensors:
        self.poison, self.error = 13.0, InvalidTensor("poison")
        if not (inputs[0] == self.poison).any():
            self.poison, self.error = 666.0, DeadlineExceeded("it hangs")
        return super().__call__(inputs)


@pytest.mark.parametrize(("refused", "on_loop"), [(None, [9]), (0, [9, 5, 3, 2, 1, 1, 1, 2, 4])])
async def test_after_a_run_had_to_be_ended_on_the_event_loop_none_is_made_there(
    refused: int | None, on_loop: list[int]
):
    model = Hanging()
    batcher, lanes, _ = build(model, Batching(64, 1000))
    counted = batcher._metrics
    sent = [rows(1) for _ in range(9)]
    for at in (5, 6, 7):
        sent[at][0, 0] = 666.0
    if refused is not None:
        sent[refused][0, 0] = 13.0
    proof = asyncio.ensure_future(batcher.prove((sent[8],), 1))
    asked = [*(asyncio.ensure_future(batcher.infer((x,), 1)) for x in sent[:8]), proof]
    await turns()
    assert model.sizes == on_loop
    assert (len(lanes.jobs), batcher._rows, batcher._room, counted.queue_rows) == (1, 8, 1001, 8)
    sent.append(rows(1))
    asked.append(asyncio.ensure_future(batcher.infer((sent[9],), 1)))
    while lanes.jobs:
        await lanes.run_one()
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert model.sizes == on_loop + [1] * 10  # each by itself, in a lane
    for at, (result, x) in enumerate(zip(results, sent, strict=True)):
        if at in {5, 6, 7, refused}:
            assert isinstance(result, InvalidTensor if at == refused else DeadlineExceeded)
        else:
            check(result, x)  # type: ignore[arg-type]
    assert (batcher._rows, batcher._room, counted.queue_rows) == (0, 1000, 0)


async def test_who_is_put_back_after_a_run_that_hung_is_told_when_his_time_is_up():
    """However long the next run is: nobody watches over what was to be answered at once."""
    model = Hanging()
    batcher, lanes, clock = build(model, Batching(64, 1000))
    bad, good = rows(1), rows(1)
    bad[0, 0] = 666.0
    deadlines = {"bad": math.inf, "good": clock() + 0.01}  # which the loop's own clock sees pass
    asked = [
        asyncio.ensure_future(batcher.infer((x,), 1, deadline))
        for x, deadline in zip((bad, good), deadlines.values(), strict=True)
    ]
    await turns()
    assert len(lanes.jobs) == 1  # it is the bad one's, and does not end
    with pytest.raises(DeadlineExceeded, match="ran out while it waited"):
        await asked[1]
    assert batcher._metrics.rejected["deadline"] == 1
    await lanes.run_one()
    with pytest.raises(DeadlineExceeded):
        await asked[0]
    assert not lanes.jobs


async def test_a_request_that_hangs_alone_on_the_event_loop_has_its_answer_and_leaves_it():
    model = Hanging()
    batcher, lanes, _ = build(model, Batching(64, 1000))
    bad, good = rows(1), rows(1)
    bad[0, 0] = 666.0
    with pytest.raises(DeadlineExceeded):
        await batcher.infer((bad,), 1)
    assert not lanes.jobs
    after = asyncio.ensure_future(batcher.infer((good,), 1))
    await turns()
    await lanes.run_one()
    check(await after, good)


async def test_a_request_larger_than_a_batch_is_split_and_joined_in_order():
    model = Model()
    batcher, _, _ = build(model, Batching(4, 100))
    large, small = rows(11), rows(2)
    answers = await asyncio.gather(batcher.infer((large,), 11), batcher.infer((small,), 2))
    check(answers[0], large)
    check(answers[1], small)
    assert max(model.sizes) <= 4


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


@pytest.mark.parametrize("lanes", [0, 1])
async def test_runs_that_fail_are_not_counted(lanes: int):
    model = Model(poison=666.0)
    batcher, executor, _ = build(model, Batching(64, 1000), lanes=lanes)
    sent = [rows(2) for _ in range(8)]
    sent[4][0, 0] = 666.0
    await outcomes(batcher, executor, sent)
    assert model.sizes == [16, 8, 8, 4, 2, 2, 4]
    counted = batcher._metrics
    assert {size: run[0] for size, run in counted.runs.items()} == {8: 1, 2: 1, 4: 1}
    assert (sum(counted.batch_rows.counts), counted.batch_rows.total) == (3, 14)
    bad = asyncio.ensure_future(batcher.infer((sent[4],), 2))
    await turns()
    while executor.jobs:
        await executor.run_one()
    await asyncio.gather(bad, return_exceptions=True)
    assert (sum(counted.batch_rows.counts), counted.batch_rows.total) == (3, 14)


@pytest.mark.parametrize("lanes", [0, 1])
async def test_the_servers_own_rows_are_not_counted(lanes: int):
    batcher, executor, _ = build(Model(), Batching(4, 1000), lanes=lanes)
    counted = batcher._metrics

    async def settle(*asked: asyncio.Future[Answer]) -> None:
        await turns()
        while executor.jobs:
            await executor.run_one()
        await asyncio.gather(*asked)

    await settle(asyncio.ensure_future(batcher.prove((rows(6),), 6)))
    assert (sum(counted.batch_rows.counts), counted.runs) == (0, {})
    proof = asyncio.ensure_future(batcher.prove((rows(2),), 2))
    await settle(proof, asyncio.ensure_future(batcher.infer((rows(1),), 1)))  # together in one run
    assert {size: run[0] for size, run in counted.runs.items()} == {1: 1}
    await settle(asyncio.ensure_future(batcher.infer((rows(3),), 3)))
    assert (sum(counted.batch_rows.counts), counted.batch_rows.total) == (2, 4)
    assert not batcher._own


async def test_who_is_abandoned_waits_no_longer_in_the_queue_or_its_gauge():
    model = Model()
    batcher, lanes, _ = build(model, Batching(2, 100), lanes=1)
    counted = batcher._metrics
    asked = [asyncio.ensure_future(batcher.infer((rows(2),), 2))]
    await turns()
    asked += [asyncio.ensure_future(batcher.infer((rows(size),), size)) for size in (1, 2, 5)]
    asked.append(asyncio.ensure_future(batcher.prove((rows(3),), 3)))
    await turns()
    assert counted.queue_rows == 11
    batcher.abandon(Unavailable("it hangs"))
    assert (counted.queue_rows, batcher._rows) == (0, 0)
    for told in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(told, Unavailable)
    while lanes.jobs:  # the run ends after all
        await lanes.run_one()
    assert (model.sizes, counted.queue_rows) == ([2], 0)


@pytest.mark.parametrize("lanes", [0, 1])
async def test_who_comes_to_an_abandoned_batcher_is_told_the_same(lanes: int):
    model = Model()
    batcher, executor, _ = build(model, Batching(2, 100), lanes=lanes)
    error = Unavailable("it hangs", retry_after_s=3.0)
    batcher.abandon(error)
    for ask in (
        batcher.check_room,
        lambda: batcher.infer((rows(1),), 1),
        lambda: batcher.infer((rows(5),), 5),
        lambda: asyncio.ensure_future(batcher.prove((rows(3),), 3)),
    ):
        with pytest.raises(Unavailable, match="it hangs") as told:
            await ask()  # type: ignore[misc, func-returns-value] # each raises
        assert told.value.retry_after_s == 3.0
        assert told.value is not error  # with which the frames of all who were told would be kept
    await turns()
    assert (model.sizes, len(executor.jobs), batcher._rows, batcher._room) == ([], 0, 0, 100)
