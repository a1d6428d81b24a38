"""What a compressed variant loses against the full model, and how sure that is."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from scipy import stats  # type: ignore[import-untyped]  # scipy has no type information

from workers.evaluation.judge import Judge
from workers.evaluation.metrics import LOWER_IS_BETTER, metric_drop
from workers.learning import Array

_SURE = 0.95
_FOLDS = 20


@dataclass(frozen=True, slots=True)
class Loss:
    """How much worse `metric` is on the rows at hand, and at most on any rows (95 % sure); negative is better.

    `allowed` is what the budget leaves it.
    """

    metric: str
    measured: float
    at_most: float
    allowed: float = 0.0

    @property
    def within(self) -> bool:
        """Surely no more than is allowed."""
        return self.at_most <= self.allowed


def worst_loss(
    judge: Judge, main_metric: str, full: Array, other: Array, budget: float, error_increase: float | None = None,
    accuracy_drop: float | None = None,
) -> Loss:  # fmt: skip
    """The loss of the main metric or of accuracy, where there is one: the one that is further beyond its budget.

    Accuracy too, since an ensemble without its last trees may rank rows as before while every probability has moved
    to one side of the threshold. A metric that these rows do not have, as ROC AUC of one class, is passed over.

    Args:
        judge: the rows.
        main_metric: of the model.
        full: the full model's answers to them.
        other: the variant's answers.
        budget: most loss, absolute, or relative for errors; a loss above it is not looked at more closely.
        error_increase: most increase of the error, relative; None: no bound but `budget`.
        accuracy_drop: in place of `budget`, of accuracy where that is not the main metric; None: `budget`.
    """
    everything = np.ones(len(judge.y), bool)
    measured = _drops(judge, full, other, everything, (main_metric, "accuracy"))
    measured = measured or _drops(judge, full, other, everything)
    names = [name for name in (main_metric, "accuracy") if name in measured] or [next(iter(measured))]
    before = judge.score(full, names=names)
    budgets = dict.fromkeys(names, budget)
    if accuracy_drop is not None and main_metric != "accuracy" and "accuracy" in names:
        budgets["accuracy"] = accuracy_drop
    allowed = {name: _allowed(name, before[name], budgets[name], error_increase) for name in names}
    name = max(names, key=lambda name: measured[name] - allowed[name])
    if measured[name] > allowed[name]:
        return Loss(name, measured[name], measured[name], allowed[name])
    folds = judge.dealt(_FOLDS, 0)  # what rows of one group say is said once
    without = [_drops(judge, full, other, folds != fold, names) for fold in np.unique(folds)]
    losses = []
    for name in names:
        doubt = _doubt([drops[name] for drops in without if name in drops])
        losses.append(Loss(name, measured[name], measured[name] + doubt, allowed[name]))
    return max(losses, key=lambda loss: loss.at_most - loss.allowed)


def _allowed(name: str, before: float, budget: float, error_increase: float | None) -> float:
    """In the unit of `metric_drop`. The error of a metric that is best at 1 is what lacks to 1."""
    if error_increase is None:
        return budget
    return error_increase if name in LOWER_IS_BETTER else min(budget, error_increase * (1 - before))


def _drops(
    judge: Judge, full: Array, other: Array, rows: Array, names: Collection[str] | None = None
) -> dict[str, float]:
    if not rows.any():
        return {}
    before, after = judge.score(full, rows, names), judge.score(other, rows, names)
    return {name: metric_drop(name, before[name], after[name]) for name in before if name in after}


def _doubt(estimates: list[float]) -> float:
    """How far above a statistic the truth may be, from its values without one fold of rows each.

    The jackknife's standard error (Efron and Tibshirani 1993), by Student's distribution, since folds are few.
    """
    count = len(estimates)
    return float(np.sqrt((count - 1) * np.var(estimates)) * stats.t.ppf(_SURE, count - 1)) if count > 1 else 0.0
