"""How good answers are by one metric, where larger is always better. Fast: it is asked thousands of times."""

from collections.abc import Callable

import numpy as np
from scipy.stats import rankdata  # type: ignore[import-untyped]  # no stubs

from app.core.signature import Task
from workers.evaluation.metrics import LOWER_IS_BETTER, evaluate, positive_class
from workers.learning import PLAIN, Array, Rule

_TINY = 1e-7
Score = Callable[[Array, Array], float]  # of targets and answers


def scorer(metric: str, task: Task, y: Array, *, ordinal: bool = False) -> Score:
    """The score of answers by `metric`; `y` are all targets, of which later ones may be a part."""
    quick = None if task == "multilabel" else _QUICK.get(metric)
    if quick is not None:
        return quick
    rule = PLAIN if task == "multilabel" else Rule(positive_class(y), ordinal=ordinal)
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0

    def score(targets: Array, answers: Array) -> float:
        return sign * evaluate(task, targets, answers, rule=rule, names={metric}).get(metric, -np.inf)

    return score


def log_likelihood(y: Array, probabilities: Array) -> float:
    """Mean log probability of the right class."""
    return float(np.log(np.clip(probabilities[np.arange(len(y)), y], _TINY, 1)).mean())


def _roc_auc(y: Array, probabilities: Array) -> float:
    """By ranks; of several classes the mean of one against the rest over those present."""
    classes = [1] if probabilities.shape[1] == 2 else np.unique(y)  # noqa: PLR2004 - binary
    areas = []
    for k in classes:
        right = y == k
        positives, negatives = int(right.sum()), int((~right).sum())
        if not positives or not negatives:
            return -np.inf
        ranks = rankdata(probabilities[:, k])[right].sum()
        areas.append((ranks - positives * (positives + 1) / 2) / (positives * negatives))
    return float(np.mean(areas))


def _accuracy(y: Array, probabilities: Array) -> float:
    """With a tenth of a row's worth of log likelihood, since accuracy alone does not tell close answers apart."""
    right = float((probabilities.argmax(axis=1) == y).mean())
    return right + 0.1 * log_likelihood(y, probabilities) / len(y)


def _rmse(y: Array, values: Array) -> float:
    return -float(np.sqrt(np.mean((y - values) ** 2)))


def _mae(y: Array, values: Array) -> float:
    return -float(np.abs(y - values).mean())


_QUICK: dict[str, Score] = {
    "roc_auc": _roc_auc, "accuracy": _accuracy, "log_loss": log_likelihood, "rmse": _rmse, "r2": _rmse, "mae": _mae,
}  # fmt: skip
