"""A batcher whose clock and lanes the test moves by hand, and a model that tells whose answer is whose."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from app.core.errors import InvalidTensor
from app.serving.batcher import Batcher
from app.serving.types import Answer, Batching, Plan, Tensors
from app.serving.waiting import Pending
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

    def __init__(self, poison: float | None = None, error: Exception | None = None) -> None:
        self.sizes: list[int] = []
        self.poison = poison
        self.error = error or InvalidTensor("poison")

    def __call__(self, inputs: Tensors) -> Tensors:
        self.sizes.append(len(inputs[0]))
        if self.poison is not None and (inputs[0] == self.poison).any():
            raise self.error
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
