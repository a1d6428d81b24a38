"""How sure a metric is: 95 % intervals from resampled rows (the percentile bootstrap).

A resample gives each row a weight, how often it was drawn, and every metric is computed from weights for many resamples
at once. With weights of one they are the metrics of `workers.evaluation.metrics`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix  # type: ignore[import-untyped]  # scipy has no type information

from app.core.signature import Task
from workers.evaluation.areas import areas, mean_of_defined
from workers.evaluation.metrics import BINS, Classified, Valued, calibration_bins
from workers.evaluation.multilabel import weighted_labels
from workers.learning import PLAIN, Array, Rule

LEVEL = 0.95
_MOST, _FEWEST = 1000, 100  # resamples
_WORK = 20_000_000  # rows times resamples: about a second
_CHUNK = 2_000_000  # weights that are held at a time
_CURVE_CLASSES = 20  # with more, areas under curves would take minutes
_MATRIX_CLASSES = 100
_LEAST_GROUPS = 5  # fewer say nothing of others
_SEED = 0
_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Intervals:
    """Low and high by metric; a metric that most resamples leave undefined has none. `by`: what was drawn."""

    by: Literal["rows", "groups"]
    resamples: int
    bounds: dict[str, tuple[float, float]]

    def width(self, name: str) -> float | None:
        """High minus low."""
        return self.bounds[name][1] - self.bounds[name][0] if name in self.bounds else None


def bootstrap(task: Task, y: Array, answers: Array, *, rule: Rule = PLAIN, groups: Array | None = None) -> Intervals:
    """Intervals of all metrics, the same for the same rows; arguments as of `workers.evaluation.metrics.evaluate`.

    Rows are taken to be independent of each other. Where `groups` [N] says that they are not, as rows of one person,
    whole groups are drawn, and the intervals are as wide as they have to be; of fewer than five groups there are none.
    """
    if groups is not None and len(np.unique(groups)) < _LEAST_GROUPS:
        return Intervals("groups", 0, {})
    resamples = int(np.clip(_WORK // max(1, len(y)), _FEWEST, _MOST))
    parts = [weighted(task, y, answers, rule, weights) for weights in _resampled(len(y), resamples, groups)]
    bounds = {}
    for name in parts[0]:
        values = np.concatenate([part[name] for part in parts])
        values = values[np.isfinite(values)]
        if len(values) > resamples / 2:
            low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            bounds[name] = (float(low), float(high))
    return Intervals("rows" if groups is None else "groups", resamples, bounds)


def _resampled(rows: int, resamples: int, groups: Array | None) -> Iterator[_Floats]:
    """Weights [some, rows] of all resamples."""
    rng = np.random.default_rng(_SEED)
    units = np.arange(rows) if groups is None else np.unique(groups, return_inverse=True)[1]
    count, some = int(units.max()) + 1, max(1, _CHUNK // rows)
    for start in range(0, resamples, some):
        size = min(some, resamples - start)
        drawn = rng.integers(0, count, (size, count)) + np.arange(size)[:, None] * count
        weights = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)
        yield weights if groups is None else weights[:, units]


def weighted(task: Task, y: Array, answers: Array, rule: Rule, weights: _Floats) -> dict[str, _Floats]:
    """Each metric for each resample.

    Args:
        task: classification or regression.
        y: int64 class indices [N] or values [N].
        answers: probabilities [N, K], or values [N] or [N, 3].
        rule: how answers are read.
        weights: how often each row counts, [B, N].

    Returns:
        [B] by metric, NaN where it is undefined.
    """
    if task == "multilabel":
        return weighted_labels(y, answers, weights, BINS)
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 is what is undefined
        if task == "regression":
            return _values(Valued.of(y.astype(np.float64), answers.astype(np.float64), rule), weights)
        return _classes(Classified.of(y, answers, rule), weights)


def _values(judged: Valued, weights: _Floats) -> dict[str, _Floats]:
    y, rows, error = judged.y, weights.sum(axis=1), judged.answers - judged.y
    squares = weights @ error**2
    found = {"rmse": np.sqrt(squares / rows), "mae": weights @ np.abs(error) / rows}
    centred = y - y.mean()
    spread = weights @ centred**2 - (weights @ centred) ** 2 / rows
    found["r2"] = np.where(spread > 0, 1 - squares / spread, np.nan)
    if np.all(y):
        found["mape"] = weights @ np.abs(error / y) / rows
    return found | {name: weights @ values / rows for name, values in judged.of_intervals().items()}


def _classes(judged: Classified, weights: _Floats) -> dict[str, _Floats]:
    rows, at, p = weights.sum(axis=1), np.arange(len(judged.y)), judged.probabilities
    found: dict[str, _Floats] = {}
    if judged.raw.shape[1] <= _MATRIX_CLASSES:
        found |= _of_matrix(judged, _matrices(judged, weights))
    else:
        found["accuracy"] = weights @ (judged.y == judged.predicted) / rows
    found["log_loss"] = weights @ -np.log(p[at, judged.y]) / rows
    squares = ((p - np.eye(p.shape[1])[judged.y]) ** 2).sum(axis=1) if p.shape[1] <= _MATRIX_CLASSES else None
    if squares is not None:
        found["brier"] = weights @ squares / rows / (2 if judged.binary else 1)
    confidence = p.max(axis=1)
    misses = (confidence - judged.likeliest_is_right)[:, None] * np.eye(BINS)[calibration_bins(confidence)]
    found["ece"] = np.abs(weights @ misses).sum(axis=1) / rows
    if judged.raw.shape[1] <= _CURVE_CLASSES:
        curves = [1, judged.positive] if judged.binary else judged.labels
        curved = {k: areas(judged.raw[:, k], judged.y == k, weights) for k in curves}
        found["roc_auc"] = curved[1][0] if judged.binary else mean_of_defined([roc for roc, _ in curved.values()])
        found["pr_auc"] = (
            curved[judged.positive][1] if judged.binary else mean_of_defined([pr for _, pr in curved.values()])
        )
    return found


def _matrices(judged: Classified, weights: _Floats) -> _Floats:
    """Confusion matrices [B, K, K], true class first."""
    classes, count = judged.raw.shape[1], len(judged.y)
    cells, at = np.unique(judged.y * classes + judged.predicted, return_inverse=True)
    chosen = csr_matrix((np.ones(count), (np.arange(count), at)), shape=(count, len(cells)))
    matrices = np.zeros((len(weights), classes * classes))
    matrices[:, cells] = weights @ chosen
    return matrices.reshape(-1, classes, classes)


def _of_matrix(judged: Classified, matrices: _Floats) -> dict[str, _Floats]:
    """What a confusion matrix tells."""
    rows = matrices.sum(axis=(1, 2))
    right, true, told = np.einsum("bkk->bk", matrices), matrices.sum(axis=2), matrices.sum(axis=1)
    there = true > 0
    several = there.sum(axis=1) > 1
    precision = np.where(told > 0, right / told, 0.0)
    recall = np.where(there, right / true, 0.0)
    f1 = np.where(true + told > 0, 2 * right / (true + told), 0.0)

    def macro(values: _Floats) -> _Floats:
        return np.asarray((values * there).sum(axis=1) / there.sum(axis=1))

    accuracy = right.sum(axis=1) / rows
    chance = (true * told).sum(axis=1) / rows**2
    spread = np.sqrt((1 - (true**2).sum(axis=1) / rows**2) * (1 - (told**2).sum(axis=1) / rows**2))
    found = {
        "accuracy": accuracy, "balanced_accuracy": macro(recall), "f1_macro": macro(f1), "f1_micro": accuracy,
        "f1_weighted": (f1 * true).sum(axis=1) / rows,
        "mcc": np.where(several, np.where(spread > 0, (accuracy - chance) / spread, 0.0), np.nan),
        "kappa": np.where(several, (accuracy - chance) / (1 - chance), np.nan),
    }  # fmt: skip
    if judged.ordinal:
        places = np.arange(judged.raw.shape[1])
        off = np.abs(places[:, None] - places)
        by_chance = np.einsum("bj,bk,jk->b", true, told, off**2.0) / rows
        found["quadratic_kappa"] = np.where(several, 1 - np.einsum("bjk,jk->b", matrices, off**2.0) / by_chance, np.nan)
        found["rank_mae"] = np.einsum("bjk,jk->b", matrices, off) / rows
        found["accuracy_within_one"] = np.einsum("bjk,jk->b", matrices, off <= 1) / rows
    for name, values in (("precision", precision), ("recall", recall), ("f1", f1)):
        found[name] = values[:, judged.positive] if judged.binary else macro(values)
    return found
