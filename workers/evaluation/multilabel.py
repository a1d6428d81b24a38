"""Metrics of rows that may have several labels. A label is told from a probability of a half on."""

from collections.abc import Callable, Collection

import numpy as np
from scipy.stats import rankdata  # type: ignore[import-untyped]  # no stubs

from workers.evaluation.areas import Floats, areas, mean_of_defined
from workers.learning import Array

_HALF = 0.5
_CURVE_LABELS = 20  # with more, resampled areas under curves would take minutes
_EPSILON = 1e-7
_OF_COUNTS, _OF_CURVES = frozenset({"f1_micro", "f1_macro"}), frozenset({"roc_auc", "pr_auc"})


def weighted_labels(
    y: Array, answers: Array, weights: Floats, bins: int, names: Collection[str] | None = None
) -> dict[str, Floats]:
    """Each metric for each resample [B], NaN where it is undefined.

    Macro averages are over the labels that are there. `log_loss`, `brier` and `ece` are of all labels of all rows.

    Args:
        y: which labels a row has, 0 or 1 [N, L].
        answers: the probability of each [N, L].
        weights: how often each row counts, [B, N].
        bins: of equal width, for `ece`.
        names: of the metrics to compute; None: all.
    """
    there, p, rows = y.astype(bool), answers.astype(np.float64), weights.sum(axis=1)
    told = p >= _HALF
    known: dict[str, Callable[[], Floats]] = {
        "subset_accuracy": lambda: weights @ (told == there).all(axis=1) / rows,
        "hamming_loss": lambda: weights @ (told != there).mean(axis=1) / rows,
        "label_ranking_ap": lambda: weights @ _ranking(there, p) / rows,
        "log_loss": lambda: weights @ _surprise(there, p) / rows,
        "brier": lambda: weights @ ((p - there) ** 2).mean(axis=1) / rows,
        "ece": lambda: np.abs(weights @ _misses(there, p, bins)).sum(axis=1) / rows,
    }
    found = {name: compute() for name, compute in known.items() if names is None or name in names}
    if names is None or not _OF_COUNTS.isdisjoint(names):
        found |= _f1(told, there, weights)
    if (names is None or not _OF_CURVES.isdisjoint(names)) and (len(weights) == 1 or p.shape[1] <= _CURVE_LABELS):
        with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 is what is undefined
            curves = [areas(p[:, k], there[:, k], weights) for k in range(p.shape[1])]
            found["roc_auc"] = mean_of_defined([roc for roc, _ in curves])
            found["pr_auc"] = mean_of_defined([pr for _, pr in curves])
    return {name: value for name, value in found.items() if names is None or name in names}


def _f1(told: Array, there: Array, weights: Floats) -> dict[str, Floats]:
    hits, counts, true = (weights @ part.astype(np.float64) for part in (told & there, told, there))  # [B, L]
    each = _share(2 * hits, counts + true)
    return {
        "f1_micro": _share(2 * hits.sum(axis=1), (counts + true).sum(axis=1)),
        "f1_macro": _share((each * (true > 0)).sum(axis=1), (true > 0).sum(axis=1).astype(np.float64)),
    }


def _surprise(there: Array, p: Floats) -> Floats:
    """Of each row, the mean over labels [N]."""
    clipped = np.clip(p, _EPSILON, 1 - _EPSILON)
    return np.asarray(-np.where(there, np.log(clipped), np.log1p(-clipped)).mean(axis=1))


def _share(part: Floats, whole: Floats) -> Floats:
    """Zero of nothing."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _ranking(there: Array, p: Floats) -> Floats:
    """Label ranking average precision of each row [N]: of a row's labels, how many of those ranked as high are its own.

    One that has no label, or all, has a perfect ranking.
    """
    ranks = rankdata(-p, method="max", axis=1).astype(np.int64)  # of equal ones the last place
    order = np.argsort(-p, axis=1, kind="stable")
    own = np.cumsum(np.take_along_axis(there, order, axis=1), axis=1)
    precision = np.take_along_axis(own, ranks - 1, axis=1) / ranks
    count = there.sum(axis=1)
    mean = np.divide((precision * there).sum(axis=1), count, out=np.ones(len(p)), where=count > 0)
    return np.asarray(mean, np.float64)


def _misses(there: Array, p: Floats, bins: int) -> Floats:
    """What each row adds to the calibration error of each bin, [N, bins]."""
    at = np.clip(np.ceil(p * bins).astype(np.int64) - 1, 0, bins - 1)
    found = np.zeros((len(p), bins))
    np.add.at(found, (np.arange(len(p))[:, None], at), (p - there) / p.shape[1])
    return found
