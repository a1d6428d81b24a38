"""Answers that are given again, and questions that share a run."""

import asyncio
import itertools
import math
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from app.core.errors import DeadlineExceeded, InvalidTensor, Overloaded
from app.serving import cache as module
from app.serving.cache import AnswerCache
from app.serving.types import Answer, Tensors
from app.telemetry.metrics import ModelMetrics, ServingMetrics

RNG = np.random.default_rng(11)
MB = 1 << 20


class Model:
    """Answers with the sum of each row once `go` is set; counts the runs, and those that were cancelled."""

    def __init__(self) -> None:
        self.runs: list[Tensors] = []
        self.cancelled = 0
        self.go = asyncio.Event()
        self.error: Exception | None = None

    def infer(self, inputs: Tensors, _rows: int, deadline: float, _priority: int) -> Awaitable[Answer]:
        self.runs.append(inputs)
        return self._answer(inputs, deadline)

    async def _answer(self, inputs: Tensors, deadline: float) -> Answer:
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if deadline != math.inf:
            raise DeadlineExceeded("late")
        if self.error:
            raise self.error
        return Answer((inputs[0].sum(axis=1),), 0.1, 0.1, 0.1)


def metrics() -> ModelMetrics:
    return ServingMetrics(CollectorRegistry()).bind("e", "m", 1, "fp32")


def rows(count: int = 1) -> Tensors:
    return (RNG.normal(size=(count, 4)).astype(np.float32),)


async def test_the_same_question_is_answered_once():
    model, counted = Model(), metrics()
    model.go.set()
    cache = AnswerCache(b"m", model.infer, MB, counted)
    questions = [rows() for _ in range(20)]
    for _ in range(3):
        for question in questions:
            answer = await cache.infer(tuple(tensor.copy() for tensor in question), 1)
            np.testing.assert_array_equal(answer.outputs[0], question[0].sum(axis=1))
    assert len(model.runs) == 20
    assert (counted.lookups["hit"][0], counted.lookups["miss"][0]) == (40, 20)
    assert answer.cached
    assert answer.compute_s == 0


async def test_type_shape_and_texts_are_part_of_the_question():
    model = Model()
    model.go.set()
    cache = AnswerCache(b"m", model.infer, MB, metrics())
    zeros = np.zeros((1, 4), np.float32)
    for question in (
        (zeros,),
        (zeros.view(np.int32),),
        (zeros.reshape(2, 2),),
        (zeros, np.array([["ab", "c"]], object)),
        (zeros, np.array([["a", "bc"]], object)),
        (zeros, np.array([["ab"], ["c"]], object)),
    ):
        assert not (await cache.infer(question, 1)).cached
    assert len(model.runs) == 6


async def test_questions_at_the_same_time_share_a_run_and_it_outlives_the_first_caller():
    model = Model()
    cache = AnswerCache(b"m", model.infer, MB, metrics())
    question = rows(3)
    callers = [asyncio.create_task(cache.infer(question, 3)) for _ in range(5)]
    await asyncio.sleep(0)
    callers[0].cancel()
    await asyncio.sleep(0)
    model.go.set()
    for caller in callers[1:]:
        np.testing.assert_array_equal((await caller).outputs[0], question[0].sum(axis=1))
    assert (len(model.runs), model.cancelled) == (1, 0)
    assert (await cache.infer(question, 3)).cached
    assert len(model.runs) == 1


async def test_when_all_callers_have_left_the_run_is_cancelled_and_the_next_starts_anew():
    model = Model()
    cache = AnswerCache(b"m", model.infer, MB, metrics())
    question = rows()
    callers = [asyncio.create_task(cache.infer(question, 1)) for _ in range(3)]
    await asyncio.sleep(0)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    late = asyncio.create_task(cache.infer(question, 1))
    await asyncio.sleep(0)
    assert (len(model.runs), model.cancelled) == (2, 1)
    model.go.set()
    np.testing.assert_array_equal((await late).outputs[0], question[0].sum(axis=1))


async def test_errors_are_shared_but_not_kept():
    model = Model()
    model.error = InvalidTensor("no")
    model.go.set()
    cache = AnswerCache(b"m", model.infer, MB, metrics())
    question = rows()
    both = await asyncio.gather(cache.infer(question, 1), cache.infer(question, 1), return_exceptions=True)
    assert [type(error) for error in both] == [InvalidTensor, InvalidTensor]
    model.error = None
    assert not (await cache.infer(question, 1)).cached


async def test_the_deadline_of_the_first_is_not_that_of_the_others():
    model = Model()
    cache = AnswerCache(b"m", model.infer, MB, metrics())
    question = rows()
    hasty = asyncio.create_task(cache.infer(question, 1, deadline=1.0))
    patient = asyncio.create_task(cache.infer(question, 1))
    await asyncio.sleep(0)
    model.go.set()
    with pytest.raises(DeadlineExceeded):
        await hasty
    np.testing.assert_array_equal((await patient).outputs[0], question[0].sum(axis=1))
    assert len(model.runs) == 2


@pytest.mark.parametrize("has_time", [False, True])
async def test_a_run_that_took_too_long_is_not_run_again_by_those_who_joined_it(*, has_time: bool):
    model = Model()
    model.error = DeadlineExceeded("the run took longer than a run may and was ended")
    cache = AnswerCache(b"m", model.infer, MB, metrics())
    question = rows()
    deadline = time.perf_counter() + 60 if has_time else math.inf
    callers = [asyncio.create_task(cache.infer(question, 1, deadline)) for _ in range(20)]
    await asyncio.sleep(0)
    model.go.set()
    for told in await asyncio.gather(*callers, return_exceptions=True):
        assert isinstance(told, DeadlineExceeded)
    assert len(model.runs) == 1


async def test_who_joins_a_run_waits_no_longer_than_he_has_time():
    model = Model()
    cache = AnswerCache(b"m", model.infer, MB, metrics())
    question = rows()
    patient = asyncio.create_task(cache.infer(question, 1))
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        with pytest.raises(DeadlineExceeded, match="while it waited"):
            await cache.infer(question, 1, deadline=time.perf_counter() + 0.01)
    model.go.set()
    np.testing.assert_array_equal((await patient).outputs[0], question[0].sum(axis=1))
    assert (len(model.runs), model.cancelled) == (1, 0)


async def test_a_refusal_leaves_nothing_behind():
    def full(_inputs: Tensors, _rows: int, _deadline: float, _priority: int) -> Awaitable[Answer]:
        raise Overloaded("full")

    cache = AnswerCache(b"m", full, MB, metrics())
    for _ in range(2):
        with pytest.raises(Overloaded):
            await cache.infer(rows(), 1)


async def test_the_longest_unasked_answers_go_first():
    model = Model()
    model.go.set()
    cache = AnswerCache(b"m", model.infer, 4 * 1024, metrics())  # seven answers
    questions = [rows() for _ in range(10)]
    for question in questions[:6]:
        await cache.infer(question, 1)
    await cache.infer(questions[0], 1)
    for question in questions[6:]:
        await cache.infer(question, 1)
    assert (await cache.infer(questions[0], 1)).cached
    assert (await cache.infer(questions[9], 1)).cached
    assert not (await cache.infer(questions[1], 1)).cached
    too_large = rows(4096)
    assert not (await cache.infer(too_large, 4096)).cached
    assert not (await cache.infer(too_large, 4096)).cached


def test_every_list_of_texts_is_a_question_of_its_own(monkeypatch: pytest.MonkeyPatch):
    async def made() -> AnswerCache:
        return AnswerCache(b"m", Model().infer, MB, metrics())

    cache = asyncio.run(made())
    for at_once in (1, 2, 16):
        monkeypatch.setattr(module, "_TEXTS_AT_ONCE", at_once)
        asked = [np.array(texts, object) for texts in itertools.product(["", "a", "aa", "é", "1", "]", "[1"], repeat=4)]
        asked += [texts.reshape(2, 2) for texts in asked]
        assert len({cache._key((texts,)) for texts in asked}) == len(asked)
        assert len({cache._key((texts[:2], texts[2:])) for texts in asked[: 7**4]}) == 7**4


def watched(function: Callable[..., Any], loop_did_it: list[bool]) -> Callable[..., Any]:
    """The same, that notes whether the event loop called it."""
    loop = threading.get_ident()

    def call(*given: Any) -> Any:
        loop_did_it.append(threading.get_ident() == loop)
        return function(*given)

    return call


@pytest.mark.parametrize(
    ("question", "here"),
    [
        ((np.zeros((1, 4), np.float32), np.array([["red"]], object)), True),
        ((np.full((1, 2048), "abc", object),), True),
        ((np.full((1, 2049), "", object),), False),
        ((np.array([["a" * 300_000]], object),), False),
        ((np.zeros((1, 60_000), np.float32),), True),
        ((np.zeros((1, 70_000), np.float32),), False),
        ((np.zeros((1, 40_000), np.float32), np.zeros((1, 40_000), np.float32)), False),
    ],
)
async def test_keys_of_large_questions_are_made_in_a_thread(question: Tensors, *, here: bool):
    runs: list[Tensors] = []

    async def infer(inputs: Tensors, *_: Any) -> Answer:
        runs.append(inputs)
        return Answer((np.ones(1, np.float32),), 0.1, 0.1, 0.1)

    counted = metrics()
    cache = AnswerCache(b"m", infer, MB, counted)
    by_loop: list[bool] = []
    cache._key = watched(cache._key, by_loop)  # type: ignore[method-assign]
    assert not (await cache.infer(question, 1)).cached
    assert (await cache.infer(tuple(tensor.copy() for tensor in question), 1)).cached
    assert by_loop == [here, here]
    assert len(runs) == 1
    assert (counted.lookups["hit"][0], counted.lookups["miss"][0]) == (1, 1)


@pytest.mark.parametrize(
    ("output", "here", "kept"),
    [
        (np.zeros((1, 4), np.float32), True, True),
        (np.zeros((1, 100_000), np.float32), False, True),
        (np.full((1, 5000), "ab", object), False, True),
        (np.full((1, 100_000), "ab" * 8, object), False, False),
    ],
)
async def test_large_answers_are_copied_in_a_thread(
    monkeypatch: pytest.MonkeyPatch, output: Any, *, here: bool, kept: bool
):
    async def infer(*_: Any) -> Answer:
        return Answer((output,), 0.1, 0.1, 0.1)

    by_loop: list[bool] = []
    monkeypatch.setattr(module, "_copied", watched(module._copied, by_loop))
    cache = AnswerCache(b"m", infer, MB, metrics())
    question = rows()
    assert not (await cache.infer(question, 1)).cached
    await asyncio.get_running_loop().shutdown_default_executor()  # the copy is done
    await asyncio.sleep(0)
    assert by_loop == [here]
    assert len(cache._kept) == kept
    if kept:
        again = await cache.infer(question, 1)
        assert again.cached
        np.testing.assert_array_equal(again.outputs[0], output)
        assert again.outputs[0] is not output
