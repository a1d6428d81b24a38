"""Which combination is the best, judged by rows that it was not fitted on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from app.core.signature import Task
from workers.automl.combine import Combination, Weighted, best_single, calibrated, greedy, least_squares, stack
from workers.automl.score import Score, scorer
from workers.evaluation.metrics import LOWER_IS_BETTER
from workers.learning import Array

_ROWS = 20_000  # that combinations are fitted on, at most
_PARTS = 5
Fit = Callable[[Sequence[Array], Array], Combination | None]


@dataclass(frozen=True, slots=True)
class Choice:
    """The winner among the combinations, and the scores of all by the metric that was asked for."""

    name: str
    combination: Combination
    scores: dict[str, float]
    members: list[float]  # score of each member alone
    why: str


def choose(
    answers: Sequence[Array], y: Array, metric: str, task: Task, most: int, seed: int, *, ordinal: bool = False
) -> Choice:
    """Fit each way to combine on parts of the rows, judge it by the others, and fit the best on all.

    Args:
        answers: of each member to rows it has not learnt from, [N, K] or [N].
        y: the targets of those rows: int64 [N], values [N], or which labels a row has [N, K].
        metric: to be good at.
        task: which one; without parts of a whole, as labels by themselves are not, nothing is stacked or calibrated.
        most: members in a combination.
        seed: of the parts.
        ordinal: classes are as far apart as their indices.
    """
    score, sign = scorer(metric, task, y, ordinal=ordinal), -1.0 if metric in LOWER_IS_BETTER else 1.0
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(y))[:_ROWS])
    few, y_few = [answer[rows] for answer in answers], y[rows]
    parts = rng.permutation(len(rows)) % _PARTS
    ways = _ways(task, score, most, len(answers))
    judged = {name: _judge(fit, few, y_few, score, parts) for name, fit in ways.items()}
    name = max(judged, key=lambda way: judged[way])  # the first, which is the simplest, of equals
    combination = ways[name](few, y_few)
    if combination is None:
        name, combination = "best model", best_single(few, y_few, score)
    if task == "classification" and isinstance(combination, Weighted):
        combination = calibrated(combination, few, y_few)
    others = ", ".join(f"{way} {sign * value:.5g}" for way, value in judged.items() if way != name)
    why = f"{metric} {sign * judged[name]:.5g} on rows it was not fitted on" + (f"; {others}" if others else "")
    alone = [sign * score(y_few, answer) for answer in few]
    found = {way: sign * value for way, value in judged.items() if np.isfinite(value)}
    return Choice(name, combination, found, alone, why)


def _ways(task: Task, score: Score, most: int, members: int) -> dict[str, Fit]:
    ways: dict[str, Fit] = {"best model": lambda answers, y: best_single(answers, y, score)}
    if members == 1 or most == 1:
        return ways
    ways["weighted mean"] = lambda answers, y: greedy(answers, y, score, most)
    if task == "regression":
        ways["least squares"] = lambda answers, y: least_squares(answers, y, most)
    if task == "classification":
        ways["stacked"] = lambda answers, y: stack(answers, y, greedy(answers, y, score, most).weights)
    return ways


def _judge(fit: Fit, answers: Sequence[Array], y: Array, score: Score, parts: Array) -> float:
    """Score of combined answers, each by a combination fitted on the other parts; infinitely bad if it cannot be."""
    combined = np.zeros_like(answers[0], dtype=np.float64)
    for part in range(_PARTS):
        held = parts == part
        found = fit([answer[~held] for answer in answers], y[~held])
        if found is None:
            return -np.inf
        combined[held] = found.apply([answer[held] for answer in answers])
    return score(y, combined)
