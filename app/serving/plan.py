"""How a model runs best on this machine, measured while it is warmed up."""

import time
from collections.abc import Callable
from concurrent.futures import Executor
from statistics import median

from app.serving.golden import Golden
from app.serving.types import Batching, Plan, Run

# Below this a thread hand-over costs more than the run.
INLINE_S = 0.3e-3
# Longest time that one full batch may hold the event loop.
INLINE_BATCH_S = 2e-3
_RUNS = 7
_BUDGET_S = 0.3  # of one measurement
_GAIN = 1.1  # a second copy of the weights must be worth this much
_LANE_ROWS = 8  # rows of the batches that throughput is compared at


def buckets(max_batch: int) -> list[int]:
    """1, 2, 4, … and `max_batch`: the batch sizes that are run once before a model serves."""
    sizes = [1]
    while sizes[-1] * 2 < max_batch:
        sizes.append(sizes[-1] * 2)
    return sizes if max_batch == 1 else [*sizes, max_batch]


def warm(run: Run, golden: Golden, limits: Batching) -> None:
    """Run each batch bucket once, so that no caller pays for the first allocation."""
    for size in buckets(limits.max_batch):
        run(golden.rows(size))


def is_inline(run: Run, golden: Golden, limits: Batching) -> bool:
    """True if one row and a full batch are both so fast that the event loop may run them itself.

    The best of the runs counts: the machine may be busy with the traffic of the version before.
    """
    return min(_times(run, golden, 1)) < INLINE_S and min(_times(run, golden, limits.max_batch)) < INLINE_BATCH_S


def choose(
    narrow: Run, open_wide: Callable[[], Run], golden: Golden, limits: Batching, executor: Executor, cores: int
) -> Plan:
    """Lanes of one thread, one lane of all cores, or lanes plus an all-core session for a lonely request.

    `narrow` uses one thread a run; `open_wide` opens a session that uses `cores`. The winner is measured, in items/s.
    """
    if is_inline(narrow, golden, limits):
        return Plan(narrow, inline=True)
    if cores == 1:
        return Plan(narrow)
    wide = open_wide()
    warm(wide, golden, limits)
    rows = min(_LANE_ROWS, limits.max_batch)
    by_lanes = cores / _together(narrow, golden, rows, executor, cores)
    by_width = 1 / _seconds(wide, golden, rows)
    if by_width > by_lanes * _GAIN:
        return Plan(wide)
    alone = _seconds(narrow, golden, 1) > _seconds(wide, golden, 1) * _GAIN
    return Plan(narrow, lanes=cores, alone=wide if alone else None)


def _seconds(run: Run, golden: Golden, rows: int) -> float:
    """Median seconds of one run."""
    return median(_times(run, golden, rows))


def _times(run: Run, golden: Golden, rows: int) -> list[float]:
    inputs = golden.rows(rows)
    times: list[float] = []
    end = time.perf_counter() + _BUDGET_S
    while len(times) < _RUNS and (not times or time.perf_counter() < end):
        begun = time.perf_counter()
        run(inputs)
        times.append(time.perf_counter() - begun)
    return times


def _together(run: Run, golden: Golden, rows: int, executor: Executor, lanes: int) -> float:
    """Median seconds of one run while `lanes` of them run at the same time."""
    jobs = [executor.submit(_seconds, run, golden, rows) for _ in range(lanes)]
    return max(job.result() for job in jobs)
