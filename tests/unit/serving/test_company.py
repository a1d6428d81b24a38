"""Waiting for company (`max_delay_ms`) costs nobody his deadline, and no endpoint its promise."""

import asyncio
import math

import pytest

from app.core.errors import InvalidSpec
from app.serving.types import Batching
from app.specs.endpoints import EndpointSpec
from tests.support.batching import Model, build, check, rows, turns

MINUTE = 60_000.0
ROUTES = [{"version": 1}]


@pytest.mark.parametrize("first", ["in haste", "patient"])
async def test_nobodys_time_runs_out_while_he_waits(first: str):
    model = Model()
    batcher, _, clock = build(model, Batching(8, 100, MINUTE))
    sent, soon = [rows(1), rows(1)], clock.now + 0.05
    deadlines = [soon, math.inf] if first == "in haste" else [math.inf, soon]
    async with asyncio.timeout(30):
        answers = await asyncio.gather(
            *(batcher.infer((x,), 1, deadline) for x, deadline in zip(sent, deadlines, strict=True))
        )
    assert model.sizes == [2]
    for x, answer in zip(sent, answers, strict=True):
        check(answer, x)


async def test_the_time_of_a_run_is_left_before_the_earliest_deadline():
    batcher, _, clock = build(Model(), Batching(8, 100, 1e9))
    batcher.pace.ran(1, 0.5)
    waiting = [asyncio.ensure_future(batcher.infer((rows(1),), 1, clock.now + after)) for after in (900, 100, 800)]
    await turns()
    assert clock.now + 97 < batcher._due < clock.now + 99.5
    batcher._pump()  # as the timer would
    await asyncio.gather(*waiting)


async def test_who_joins_is_part_of_what_the_run_will_take():
    batcher, _, clock = build(Model(), Batching(8, 100, 1e9))
    for size in (1, 8):
        batcher.pace.ran(size, float(size))
    first = asyncio.ensure_future(batcher.infer((rows(1),), 1, clock.now + 50))
    await turns()
    due = batcher._due
    others = [asyncio.ensure_future(batcher.infer((rows(1),), 1)) for _ in range(6)]
    await turns()
    assert batcher._due < due - 3  # a run of seven rows takes six seconds longer
    batcher._pump()
    await asyncio.gather(first, *others)


async def test_a_promise_is_not_used_up_by_waiting():
    """An endpoint that was given such a pair before it was refused goes on, and answers in time."""
    model = Model()
    batcher, _, _ = build(model, Batching(8, 100, MINUTE, p95_s=0.05))
    sent = rows(1)
    async with asyncio.timeout(30):
        check(await batcher.infer((sent,), 1), sent)
    assert model.sizes == [1]


@pytest.mark.parametrize(
    ("more", "loc", "words"),
    [
        ({"batching": {"max_delay_ms": 20}, "slo": {"p95_ms": 20}}, ("batching", "max_delay_ms"), "below slo.p95_ms"),
        ({"routes": [{"version": 1, "weight": 50}]}, ("routes", 0, "weight"), "all of the traffic"),
    ],
)
def test_what_fields_say_against_each_other_is_refused_but_read(more: dict[str, object], loc: object, words: str):
    spec = EndpointSpec.model_validate({"model": "m", "routes": ROUTES, **more})
    with pytest.raises(InvalidSpec, match=words) as refused:
        spec.check_new()
    assert [error.loc for error in refused.value.errors] == [loc]


@pytest.mark.parametrize(
    "more",
    [
        {"batching": {"max_delay_ms": 19.9}, "slo": {"p95_ms": 20}},
        {"batching": {"max_delay_ms": 1000}},
        {"slo": {"p95_ms": 0.001}},
        {"routes": [{"version": 1, "weight": 100}]},
    ],
)
def test_what_goes_together_is_taken(more: dict[str, object]):
    EndpointSpec.model_validate({"model": "m", "routes": ROUTES, **more}).check_new()
