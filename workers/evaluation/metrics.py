"""Metrics on held-out rows. Every value is finite; what is undefined on the rows at hand is left out."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn import metrics as sk

from app.core.signature import Task
from workers.learning import Array

LOWER_IS_BETTER = frozenset({"log_loss", "rmse", "mae"})
_EPSILON = 1e-7  # probabilities are float32; log loss needs them off 0 and 1


def default_metric(task: Task, n_classes: int) -> str:
    """The main metric where the spec names none."""
    if task == "regression":
        return "rmse"
    return "roc_auc" if n_classes == 2 else "accuracy"  # noqa: PLR2004 - binary


def positive_class(y: Array) -> int:
    """Of two classes the rarer one; the second when they are equally frequent."""
    return int(np.mean(y == 1) <= 0.5)  # noqa: PLR2004 - half of the rows


def evaluate(task: Task, y: Array, answers: Array, *, positive: int = 1) -> dict[str, float]:
    """All metrics of a task.

    Args:
        task: classification or regression.
        y: int64 class indices [N] or values [N].
        answers: probabilities [N, K] or values [N].
        positive: for two classes, the one that precision, recall and F1 speak of; with more they are macro averages.
    """
    found = _regression(y, answers) if task == "regression" else _classification(y, answers, positive)
    return {name: float(value) for name, value in found.items() if np.isfinite(value)}


def _regression(y: Array, answers: Array) -> dict[str, float]:
    found = {"rmse": sk.root_mean_squared_error(y, answers), "mae": sk.mean_absolute_error(y, answers)}
    if len(y) > 1:
        found["r2"] = sk.r2_score(y, answers)
    return found


def _classification(y: Array, probabilities: Array, positive: int) -> dict[str, float]:
    classes = probabilities.shape[1]
    predicted, labels = probabilities.argmax(axis=1), list(range(classes))
    clipped = np.clip(probabilities.astype(np.float64), _EPSILON, 1 - _EPSILON)
    clipped /= clipped.sum(axis=1, keepdims=True)
    if classes == 2:  # noqa: PLR2004 - binary
        precision, recall, f1, _ = sk.precision_recall_fscore_support(
            y, predicted, average="binary", pos_label=positive, zero_division=0.0
        )
    else:
        precision, recall, f1, _ = sk.precision_recall_fscore_support(
            y, predicted, labels=np.unique(y), average="macro", zero_division=0.0
        )
    recalls = sk.recall_score(y, predicted, labels=np.unique(y), average=None, zero_division=0.0)
    return {
        "accuracy": sk.accuracy_score(y, predicted),
        "balanced_accuracy": float(np.mean(recalls)),
        "f1": f1,
        "precision": precision,
        "recall": recall,
        "roc_auc": _roc_auc(y, probabilities),
        "log_loss": sk.log_loss(y, clipped, labels=labels),
    }


def _roc_auc(y: Array, probabilities: Array) -> float:
    """Area under the ROC curve; for several classes the mean of one-versus-rest over those present."""
    present = np.unique(y)
    if len(present) < 2:  # noqa: PLR2004 - undefined
        return float("nan")
    if probabilities.shape[1] == 2:  # noqa: PLR2004 - binary
        return float(sk.roc_auc_score(y, probabilities[:, 1]))
    return float(np.mean([sk.roc_auc_score(y == k, probabilities[:, k]) for k in present]))


def metric_drop(name: str, base: float, other: float) -> float:
    """How much worse `other` is than `base`: absolute, but relative for metrics that are errors. Negative is better."""
    if name in LOWER_IS_BETTER:
        return (other - base) / max(abs(base), 1e-12)
    return base - other


def baseline(task: Task, y_train: Array, count: int, n_classes: int) -> npt.NDArray[np.float64]:
    """What a model without inputs answers for `count` rows: the training mean, or the training class shares."""
    if task == "regression":
        return np.full(count, float(np.mean(y_train)))
    shares = np.bincount(y_train, minlength=n_classes) / len(y_train)
    return np.tile(shares, (count, 1))


def order(found: dict[str, float], first: Sequence[str]) -> dict[str, float]:
    """The same metrics with those in `first` at the front."""
    names = [name for name in first if name in found]
    return {name: found[name] for name in [*names, *(n for n in found if n not in names)]}
