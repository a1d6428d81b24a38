"""The report of a model's answers to labelled rows: metrics with intervals, and the curves behind them."""

from collections.abc import Sequence
from typing import Any

from workers.evaluation.curves import curves
from workers.evaluation.intervals import LEVEL, Intervals, bootstrap
from workers.evaluation.judge import Judge
from workers.learning import Array


def intervals_of(judge: Judge, answers: Array) -> Intervals:
    """By resampling the judge's rows, or their groups."""
    return bootstrap(judge.task, judge.y, answers, rule=judge.rule, groups=judge.groups)


def intervals_json(found: Intervals) -> dict[str, Any]:
    """JSON-ready."""
    return {
        "level": LEVEL, "resamples": found.resamples, "by": found.by,
        "metrics": {name: list(bounds) for name, bounds in found.bounds.items()},
    }  # fmt: skip


def report(judge: Judge, answers: Array, classes: Sequence[str], points: int) -> dict[str, Any]:
    """Intervals and curves of all rows of a judge, JSON-ready; see `workers.evaluation.curves.curves`."""
    return {
        "intervals": intervals_json(intervals_of(judge, answers)),
        "curves": curves(judge.task, judge.y, answers, judge.rule, classes, points),
    }
