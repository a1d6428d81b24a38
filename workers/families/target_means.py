"""How a target goes with each of a column's values: smoothed means, and for training rows those of other rows."""

import numpy as np
import numpy.typing as npt

from workers.learning import Array, LearningData

_SMOOTHING = 20.0  # rows' worth of the overall mean in each value's mean (Micci-Barreca 2001)
_FOLDS = 5
# Share of what a column seems to explain that must hold for rows that were left out; with less, rows are cross-fitted.
_HONEST = 0.25


def columns_of(y: Array, n_classes: int) -> npt.NDArray[np.float64]:
    """Targets as columns, [N, 1]; of more than two classes one a class, [N, K]."""
    if n_classes > 2:  # noqa: PLR2004 - two classes need one column
        y = np.eye(n_classes)[y]
    return np.asarray(y, np.float64).reshape(len(y), -1)


def split_folds(data: LearningData, count: int) -> npt.NDArray[np.int64] | None:
    """Of at most so many folds, the one of each training row, [N], where rows are divided by groups; else None."""
    if data.folds is None:
        return None
    folds = data.folds(count)[: len(data.train)]
    return folds if folds.min() >= 0 and folds.max() > folds.min() else None


def folds_of(data: LearningData) -> npt.NDArray[np.int64]:
    """Which training rows are valued without each other, [N]: groups stay together where the split keeps them so."""
    folds = split_folds(data, _FOLDS)
    return np.random.default_rng(data.training.seed).permutation(len(data.train)) % _FOLDS if folds is None else folds


def target_means(
    codes: Array, size: int, targets: npt.NDArray[np.float64], folds: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Each value's smoothed target mean minus the overall mean, 0 if unseen: [size], and each training row's: [N].

    A column of many rare values gives a row's own target away, and trees would learn to trust what is noise in every
    other row. Such a column's training rows are valued by the targets of other rows (cross-fitting, as scikit-learn's
    TargetEncoder does it to all columns).

    With several target columns (one per class), their first principal direction over the values, which orders
    values for trees as the mean does for two classes (Coppersmith, Hong and Hosking 1999).
    """
    cells = folds * size + codes
    counts = np.bincount(cells, minlength=_FOLDS * size).astype(np.float64).reshape(_FOLDS, size)
    sums = [np.bincount(cells, weights=column, minlength=_FOLDS * size) for column in targets.T]
    by_fold = np.stack(sums, axis=1).reshape(_FOLDS, size, -1)
    means = _smoothed(counts.sum(axis=0), by_fold.sum(axis=0))
    direction = np.ones(1)
    if targets.shape[1] > 1:
        weighted = means * np.sqrt(counts.sum(axis=0))[:, None]
        direction = np.linalg.svd(weighted, full_matrices=False)[2][0]
        direction *= np.sign(direction[np.abs(direction).argmax()])  # which way it points is the library's whim
    others = [
        _smoothed(counts.sum(axis=0) - counts[fold], by_fold.sum(axis=0) - by_fold[fold]) @ direction
        for fold in range(_FOLDS)
    ]
    table, crossed, target = means @ direction, np.stack(others)[folds, codes], targets @ direction
    honest = _explained(crossed, target) >= _HONEST * _explained(table[codes], target)
    return table.astype(np.float32), (table[codes] if honest else crossed).astype(np.float32)


def _explained(values: npt.NDArray[np.float64], target: npt.NDArray[np.float64]) -> float:
    """Share of the target's variance that goes with `values`; 0 where they go against each other."""
    values, target = values - values.mean(), target - target.mean()
    norm, together = float(values @ values) * float(target @ target), float(values @ target)
    return max(together, 0.0) ** 2 / norm if norm > 0 else 0.0


def _smoothed(counts: npt.NDArray[np.float64], sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Means [categories, targets] minus the overall mean, drawn towards it where there are few rows."""
    overall = sums.sum(axis=0) / max(counts.sum(), 1)
    means: npt.NDArray[np.float64] = (sums - counts[:, None] * overall) / (counts + _SMOOTHING)[:, None]
    return means
