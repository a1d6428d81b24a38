"""What a person looks at, as numbers: confusion, ROC, precision-recall, calibration, gains, residuals. JSON-ready."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn import metrics as sk

from app.core.signature import Task
from workers.data.findings import shorten
from workers.evaluation.metrics import BINS, Valued, calibration_bins
from workers.learning import Array, Rule

_MATRIX_CLASSES = 30  # with more, only the most frequent confusions are listed
_CURVE_CLASSES = 10
_CONFUSIONS = 20
_DIGITS = 5
_WIDTH = 60
_HISTOGRAM = 20


def curves(
    task: Task, y: Array, answers: Array, rule: Rule, classes: Sequence[str], points: int = 200
) -> dict[str, Any]:
    """Everything that the rows at hand define.

    Args:
        task: classification or regression.
        y: int64 class indices [N] or values [N].
        answers: probabilities [N, K], or values [N] or [N, 3].
        rule: how answers are read. Of two classes the curves are of the positive one; with more there is a curve for
            each of the ten most frequent.
        classes: their names.
        points: of a curve, at most.
    """
    if task == "regression":
        return {
            "residuals": _residuals(
                y.astype(np.float64), Valued.of(y, answers.astype(np.float64), rule).answers, points
            )
        }
    names = [shorten(name, _WIDTH) for name in classes]
    if task == "multilabel":
        return _of_labels(y.astype(bool), answers, names, points)
    found: dict[str, Any] = {"confusion": _confusion(y, rule.labels(answers), names)}
    positive = rule.positive
    binary = answers.shape[1] == 2  # noqa: PLR2004 - binary
    counts = np.bincount(y, minlength=len(names))
    shown = [positive] if binary else [int(k) for k in np.argsort(-counts, kind="stable")[:_CURVE_CLASSES]]
    shown = [k for k in shown if 0 < counts[k] < len(y)]
    if shown:
        found["roc"] = [_roc(y == k, answers[:, k], names[k], points) for k in shown]
        found["pr"] = [_precision_recall(y == k, answers[:, k], names[k], points) for k in shown]
    if binary:
        found["calibration"] = {"of": names[positive], **_calibration(answers[:, positive], y == positive)}
        if shown:
            found["gains"] = {"class": names[positive], **_gains(y == positive, answers[:, positive], points)}
    else:
        top = answers.max(axis=1)
        found["calibration"] = {"of": "the likeliest class", **_calibration(top, answers.argmax(axis=1) == y)}
    return found


def _of_labels(there: Array, answers: Array, names: list[str], points: int) -> dict[str, Any]:
    """A curve for each of the most frequent labels, and calibration of all labels together."""
    counts = there.sum(axis=0)
    shown = [int(k) for k in np.argsort(-counts, kind="stable")[:_CURVE_CLASSES] if 0 < counts[k] < len(there)]
    found = {"calibration": {"of": "every label", **_calibration(answers.ravel(), there.ravel())}}
    if not shown:
        return found
    return found | {
        "roc": [_roc(there[:, k], answers[:, k], names[k], points) for k in shown],
        "pr": [_precision_recall(there[:, k], answers[:, k], names[k], points) for k in shown],
    }


def _confusion(y: Array, predicted: Array, names: list[str]) -> dict[str, Any]:
    """Rows of the true class, columns of the predicted one; the most frequent mistakes."""
    matrix = sk.confusion_matrix(y, predicted, labels=range(len(names)))
    wrong = matrix - np.diag(np.diag(matrix))
    worst = [divmod(int(at), len(names)) for at in np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]]
    mistakes = [
        {"true": names[i], "predicted": names[j], "rows": int(wrong[i, j])} for i, j in worst if wrong[i, j] > 0
    ]
    if len(names) > _MATRIX_CLASSES:
        return {"mistakes": mistakes}
    return {"classes": names, "counts": matrix.tolist(), "mistakes": mistakes}


def _roc(kind: Array, scores: Array, name: str, points: int) -> dict[str, Any]:
    false, true, _ = sk.roc_curve(kind, scores)
    some = _thin(len(false), points)
    return {"class": name, "false_positive_rate": _plain(false[some]), "true_positive_rate": _plain(true[some])}


def _precision_recall(kind: Array, scores: Array, name: str, points: int) -> dict[str, Any]:
    precision, recall, _ = sk.precision_recall_curve(kind, scores, drop_intermediate=True)
    some = _thin(len(recall), points)
    return {
        "class": name, "recall": _plain(recall[some]), "precision": _plain(precision[some]),
        "share": round(float(kind.mean()), _DIGITS),
    }  # fmt: skip


def _calibration(confidence: Array, right: Array) -> dict[str, Any]:
    """Mean probability and share of right answers in each bin that has rows."""
    at = calibration_bins(confidence)
    rows = np.bincount(at, minlength=BINS)
    there = rows > 0
    told = np.bincount(at, confidence.astype(np.float64), BINS)[there] / rows[there]
    happened = np.bincount(at, right.astype(np.float64), BINS)[there] / rows[there]
    return {"told": _plain(told), "happened": _plain(happened), "rows": rows[there].tolist()}


def _gains(kind: Array, scores: Array, points: int) -> dict[str, Any]:
    """Which share of a class is found in the rows that score highest, and how many times as many as by chance."""
    found = np.cumsum(kind[np.argsort(-scores, kind="stable")]) / kind.sum()
    some = _thin(len(found), points)
    share = (some + 1) / len(found)
    return {"share": _plain(share), "found": _plain(found[some]), "lift": _plain(found[some] / share)}


def _residuals(y: Array, answers: Array, points: int) -> dict[str, Any]:
    """Predicted value and residual (true minus predicted) of some rows, and a histogram of all residuals."""
    residual = y - answers
    some = np.random.default_rng(0).permutation(len(y))[:points]
    counts, edges = np.histogram(residual, _HISTOGRAM)
    return {
        "predicted": _plain(answers[some]), "residual": _plain(residual[some]),
        "histogram": {"edges": _plain(edges), "rows": counts.tolist()},
    }  # fmt: skip


def _thin(count: int, points: int) -> Array:
    """At most `points` positions of `count`, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, points)).round().astype(np.int64))


def _plain(values: Array) -> list[float]:
    """To five significant digits, which is what a plot shows."""
    return [float(f"{value:.{_DIGITS}g}") for value in values.tolist()]
