"""The probability from which one of two classes is told, so that a metric is as good as it can be."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from app.specs.evaluation import ThresholdMetric
from workers.learning import Array

_Floats = npt.NDArray[np.float64]
USUAL = 0.5


def best_threshold(positive: Array, scores: Array, metric: ThresholdMetric) -> tuple[float, float, float]:
    """Try every threshold that tells these rows apart in another way.

    Args:
        positive: bool [N], with both values.
        scores: probability of the positive class [N].
        metric: what to maximize.

    Returns:
        The threshold, midway between two scores, the metric that it reaches, and that of 0.5. Of equally good ones the
        one nearest to 0.5.
    """
    ranked = np.argsort(-scores, kind="stable")
    sorted_scores, kind = scores[ranked].astype(np.float64), positive[ranked]
    ends = np.flatnonzero(np.diff(sorted_scores) < 0)  # the last of equal scores
    if not len(ends):
        return USUAL, *(float(_of(metric, positive, scores >= USUAL)),) * 2
    values = _VALUES[metric](*_counts(np.cumsum(kind)[ends], ends + 1.0, float(kind.sum()), float(len(kind))))
    thresholds = (sorted_scores[ends] + sorted_scores[ends + 1]) / 2
    usual = _of(metric, positive, scores >= USUAL)
    best = np.flatnonzero(values >= values.max() - 1e-12)
    chosen = best[np.abs(thresholds[best] - USUAL).argmin()]
    if values[chosen] <= usual:
        return USUAL, usual, usual
    return float(thresholds[chosen]), float(values[chosen]), usual


def _of(metric: ThresholdMetric, positive: Array, told: Array) -> float:
    counts = _counts(np.asarray([(positive & told).sum()]), np.asarray([told.sum()]), positive.sum(), len(positive))
    return float(_VALUES[metric](*counts)[0])


def _counts(hits: Array, told: Array, positives: float, rows: float) -> tuple[_Floats, _Floats, _Floats, _Floats]:
    """True and false positives, false and true negatives, for each threshold."""
    true, false = hits.astype(np.float64), (told - hits).astype(np.float64)
    return true, false, positives - true, rows - positives - false


def _share(part: _Floats, whole: _Floats) -> _Floats:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _f1(tp: _Floats, fp: _Floats, fn: _Floats, tn: _Floats) -> _Floats:  # noqa: ARG001 - all take the same
    return _share(2 * tp, 2 * tp + fp + fn)


def _f1_macro(tp: _Floats, fp: _Floats, fn: _Floats, tn: _Floats) -> _Floats:
    return (_f1(tp, fp, fn, tn) + _f1(tn, fn, fp, tp)) / 2


def _accuracy(tp: _Floats, fp: _Floats, fn: _Floats, tn: _Floats) -> _Floats:
    return _share(tp + tn, tp + fp + fn + tn)


def _balanced(tp: _Floats, fp: _Floats, fn: _Floats, tn: _Floats) -> _Floats:
    return (_share(tp, tp + fn) + _share(tn, tn + fp)) / 2


def _mcc(tp: _Floats, fp: _Floats, fn: _Floats, tn: _Floats) -> _Floats:
    return _share(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))


def _kappa(tp: _Floats, fp: _Floats, fn: _Floats, tn: _Floats) -> _Floats:
    return _share(2 * (tp * tn - fn * fp), (tp + fp) * (fp + tn) + (tp + fn) * (fn + tn))


_VALUES: dict[ThresholdMetric, Callable[[_Floats, _Floats, _Floats, _Floats], _Floats]] = {
    "f1": _f1, "f1_macro": _f1_macro, "accuracy": _accuracy, "balanced_accuracy": _balanced, "mcc": _mcc,
    "kappa": _kappa,
}  # fmt: skip
