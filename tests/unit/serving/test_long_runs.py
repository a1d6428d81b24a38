"""Models whose runs prove long leave the event loop; those that a busy machine holds up stay."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from app.core.errors import DeadlineExceeded
from app.serving.host import Host, ModelSource
from app.serving.long_runs import LONG_S
from app.serving.types import Batching, Tensors
from tests.support.batching import Clock, ManualLanes, Model, build, check, rows, turns

LONG, SHORT = np.ones((1, 4), np.float32), np.zeros((1, 4), np.float32)


class Uneven(Model):
    """A run of LONG takes 50 ms of the clock: at work, or held up."""

    def __init__(self, *, works: bool) -> None:
        super().__init__()
        self._works = works
        self.clock = Clock()

    def __call__(self, inputs: Tensors) -> Tensors:
        if inputs[0][0, 0]:
            self.clock.now += 0.05
            work(self._works * 3 * LONG_S)
        return super().__call__(inputs)


def work(seconds: float) -> None:
    """Keep this thread's processor busy for so long."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@pytest.mark.parametrize("works", [True, False])
async def test_a_model_whose_runs_prove_long_leaves_the_event_loop(*, works: bool):
    model = Uneven(works=works)
    batcher, lanes, model.clock = build(model, Batching(1, 100))
    for sent in (LONG, SHORT, LONG, SHORT):  # that few are let pass
        check(await batcher.infer((sent,), 1), sent)
    assert not lanes.jobs
    check(await batcher.infer((LONG,), 1), LONG)
    after = asyncio.ensure_future(batcher.infer((SHORT,), 1))
    await turns()
    assert len(lanes.jobs) == works
    while lanes.jobs:
        await lanes.run_one()
    check(await after, SHORT)


async def test_callers_of_a_model_that_left_the_loop_are_watched(
    host: Host, source: Callable[..., ModelSource], table_folder: Path
):
    """Its answers no longer come before a caller could leave."""
    served = await host.load(source(table_folder))
    await host.swap(served)
    if not served.plan.inline:
        pytest.skip("the machine was too busy to plan this model on the event loop")
    assert served.prompt
    batcher, inner = served._batcher, served.plan.run
    assert batcher is not None

    def slow(inputs: Tensors) -> Tensors:
        work(3 * LONG_S)
        return inner(inputs)

    object.__setattr__(batcher._plan, "run", slow)
    row = np.array([[30, 5, 1]], np.float32), np.array([["red"]], object)
    with served:
        for _ in range(3):
            await served.infer(row, 1)
    assert (served.plan.inline, served.prompt) == (False, False)


class TooMany(Model):
    """One row at a time is no trouble; a run of more has to be ended."""

    def __call__(self, inputs: Tensors) -> Tensors:
        if len(inputs[0]) > 1:
            raise DeadlineExceeded("ended")
        return super().__call__(inputs)


async def test_a_batch_that_had_to_be_ended_moves_the_model_aside_though_its_parts_succeed():
    batcher, lanes, _ = build(TooMany(), Batching(8, 100), lanes=2)
    aside = ManualLanes()
    batcher.step_aside = lambda: aside
    sent = [rows(1) for _ in range(4)]
    waiting = [asyncio.ensure_future(batcher.infer((x,), 1)) for x in sent]
    await turns()
    while lanes.jobs:
        await lanes.run_one()
    for x, answer in zip(sent, await asyncio.gather(*waiting), strict=True):
        check(answer, x)
    last = asyncio.ensure_future(batcher.infer((sent[0],), 1))
    await turns()
    assert (len(lanes.jobs), len(aside.jobs)) == (0, 1)
    await aside.run_one()
    check(await last, sent[0])
