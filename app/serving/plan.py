"""How a model runs best on this machine, measured while it is warmed up."""

import time
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial

from app.serving.golden import Golden
from app.serving.types import Batching, Plan, Run, Tensors

# Below this a thread hand-over costs more than the run.
INLINE_S = 0.3e-3
# Longest time that one full batch may hold the event loop.
INLINE_BATCH_S = 2e-3
# No larger batch is warmed up after a run that took this long: what a first run costs more is little beside it.
WARM_RUN_S = 0.1
_TWICE_S = 0.5  # a longer run is not measured again
# No larger batch is warmed up than of this many bytes of input: what the model makes of them is many times as much.
WARM_BYTES = 32 << 20
_RUNS = 7
_BUDGET_S = 0.3  # of one measurement
_ROUNDS = 12
_ROUNDS_BUDGET_S = 1.0
_GAIN = 1.1  # a second copy of the weights must be worth this much
_LANE_ROWS = 8  # rows of the batches that throughput is compared at


def buckets(max_batch: int) -> list[int]:
    """1, 2, 4, … and `max_batch`: the batch sizes that are run once before a model serves."""
    sizes = [1]
    while sizes[-1] * 2 < max_batch:
        sizes.append(sizes[-1] * 2)
    return sizes if max_batch == 1 else [*sizes, max_batch]


def warm(run: Run, golden: Golden, limits: Batching) -> dict[int, float]:
    """Run each batch bucket, so that no caller pays for what a first run sets up; rows → seconds of a run, in order.

    WARM_RUN_S and WARM_BYTES end it before `max_batch`, which may be thousands of pictures. Each is run twice unless it
    is very long, since the first run says little about the time of those after it.
    """
    costs: dict[int, float] = {}
    for size in buckets(limits.max_batch):
        if size > 1 and size * _row_bytes(golden) > WARM_BYTES:
            break
        inputs = golden.rows(size)
        costs[size] = _seconds(run, inputs)
        if costs[size] <= _TWICE_S:
            costs[size] = min(costs[size], _seconds(run, inputs))
        if costs[size] > WARM_RUN_S:
            break
    return costs


def is_inline(run: Run, golden: Golden, limits: Batching) -> bool:
    """True if one row and a full batch are both so fast that the event loop may run them itself.

    The best of the runs counts: the machine may be busy with the traffic of the version before. To be asked only where
    `warm` reached the full batch; a smaller one was left because it takes longer than this allows.
    """
    return _best(run, golden, 1) < INLINE_S and _best(run, golden, limits.max_batch) < INLINE_BATCH_S


def choose(
    narrow: Run, open_wide: Callable[[], Run], golden: Golden, limits: Batching, executor: Executor, cores: int
) -> Plan:
    """Warm up and measure: on the event loop, in lanes of one thread, in one of all cores, or in lanes and all alone.

    `narrow` uses one thread a run; `open_wide` opens a session that uses `cores`.
    """
    costs = warm(narrow, golden, limits)
    warmed = max(costs)
    if warmed == limits.max_batch and is_inline(narrow, golden, limits):
        return Plan(narrow, inline=True, costs=costs)
    if cores == 1:
        return Plan(narrow, costs=costs)
    wide = open_wide()
    wide_costs = warm(wide, golden, limits)
    batch, row = golden.rows(min(_LANE_ROWS, warmed)), golden.rows(1)
    lanes_s = partial(_together, narrow, batch, executor, cores)
    if _ratio(lanes_s, partial(_seconds, wide, batch)) > cores * _GAIN:
        return Plan(wide, costs=wide_costs)
    alone = _ratio(partial(_seconds, narrow, row), partial(_seconds, wide, row)) > _GAIN
    return Plan(narrow, lanes=cores, alone=wide if alone else None, costs=costs)


def _row_bytes(golden: Golden) -> int:
    return sum(tensor.nbytes // len(tensor) for tensor in golden.inputs)


def _seconds(run: Run, inputs: Tensors) -> float:
    begun = time.perf_counter()
    run(inputs)
    return time.perf_counter() - begun


def _best(run: Run, golden: Golden, rows: int) -> float:
    """Seconds of the fastest of some runs."""
    inputs = golden.rows(rows)
    times: list[float] = []
    end = time.perf_counter() + _BUDGET_S
    while len(times) < _RUNS and (not times or time.perf_counter() < end):
        times.append(_seconds(run, inputs))
    return min(times)


def _ratio(first_s: Callable[[], float], second_s: Callable[[], float]) -> float:
    """How many times as long the first takes, at least, in three of four rounds.

    They take turns, so that what else the machine does hits both; where it hits them unevenly, nothing is proven.
    """
    found: list[float] = []
    end = time.perf_counter() + _ROUNDS_BUDGET_S
    while len(found) < _ROUNDS and (not found or time.perf_counter() < end):
        found.append(first_s() / second_s())
    return sorted(found)[len(found) // 4]


def _together(run: Run, inputs: Tensors, executor: Executor, lanes: int) -> float:
    """Seconds of one run in each lane, all at the same time."""
    begun = time.perf_counter()
    for job in [executor.submit(run, inputs) for _ in range(lanes)]:
        job.result()
    return time.perf_counter() - begun
