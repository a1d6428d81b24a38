"""Warming up stays within its bounds, whatever an endpoint allows, and the plan is the faster one."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from app.serving.golden import Golden
from app.serving.plan import WARM_BYTES, WARM_RUN_S, choose, warm
from app.serving.types import Batching, Plan, Tensors

LARGEST = Batching(max_batch=65_536, max_queue=65_536)


class Model:
    """Takes `begin_s` and `row_s` for each row; remembers the sizes of its runs."""

    def __init__(self, begin_s: float = 0.0, row_s: float = 0.0) -> None:
        self.begin_s, self.row_s = begin_s, row_s
        self.sizes: list[int] = []

    def __call__(self, inputs: Tensors) -> Tensors:
        self.sizes.append(len(inputs[0]))
        time.sleep(self.begin_s + self.row_s * len(inputs[0]))
        return inputs


def golden(row_bytes: int = 4) -> Golden:
    rows = np.zeros((2, row_bytes), np.uint8)
    return Golden((rows,), (rows,))


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def plan(narrow: Model, wide: Model, rows: Golden, limits: Batching, executor: ThreadPoolExecutor) -> Plan:
    return choose(narrow, lambda: wide, rows, limits, executor, 2)


def test_every_bucket_of_a_fast_model_is_warmed():
    model = Model()
    assert list(warm(model, golden(), Batching(48, 100))) == [1, 2, 4, 8, 16, 32, 48]
    assert sorted(set(model.sizes)) == [1, 2, 4, 8, 16, 32, 48]


def test_no_larger_batch_is_warmed_after_a_slow_run():
    model = Model(begin_s=WARM_RUN_S * 1.5)
    assert list(warm(model, golden(), LARGEST)) == [1]
    assert model.sizes == [1, 1]  # each twice


def test_a_slow_model_is_not_warmed_at_thousands_of_rows():
    model = Model(row_s=WARM_RUN_S / 10)
    costs = warm(model, golden(), LARGEST)
    assert max(costs) <= 16
    assert all(costs[rows] >= rows * WARM_RUN_S / 10 for rows in costs)
    assert max(model.sizes) <= 16


def test_large_rows_are_not_multiplied_by_thousands():
    model = Model()
    assert list(warm(model, golden(WARM_BYTES // 4), LARGEST)) == [1, 2, 4]
    assert list(warm(Model(), golden(WARM_BYTES * 2), LARGEST)) == [1]  # one row is always run


def test_what_was_not_warmed_is_not_run_to_choose_either(executor: ThreadPoolExecutor):
    narrow, wide = Model(), Model()
    chosen = plan(narrow, wide, golden(WARM_BYTES // 2), LARGEST, executor)
    assert not chosen.inline
    assert max(narrow.sizes + wide.sizes) <= 2
    slow = Model(begin_s=WARM_RUN_S * 1.5)
    assert not plan(slow, slow, golden(), LARGEST, executor).inline
    assert max(slow.sizes) == 1


def test_the_faster_plan_is_chosen(executor: ThreadPoolExecutor):
    limits = Batching(16, 100)
    fast, slow = Model(), Model(begin_s=0.03)
    assert plan(fast, slow, golden(), limits, executor).inline
    in_lanes = plan(slow, Model(begin_s=0.06), golden(), limits, executor)
    assert (in_lanes.run, in_lanes.lanes, in_lanes.alone) == (slow, 2, None)
    wide = Model(begin_s=0.006)
    on_all_cores = plan(slow, wide, golden(), limits, executor)
    assert (on_all_cores.run, on_all_cores.lanes) == (wide, 1)
    for_one = Model(begin_s=0.02)  # two lanes give 2 batches in 30 ms, this one 1 in 20 ms
    both = plan(slow, for_one, golden(), limits, executor)
    assert (both.run, both.lanes, both.alone) == (slow, 2, for_one)
