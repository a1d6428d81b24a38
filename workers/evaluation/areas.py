"""Areas under curves for many resamples at once."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from workers.learning import Array

Floats = npt.NDArray[np.float64]


def areas(scores: Array, positive: Array, weights: Floats) -> tuple[Floats, Floats]:
    """Areas under the ROC and the precision-recall curve [B], NaN where a resample has one of the two kinds only.

    Args:
        scores: [N].
        positive: bool [N].
        weights: how often each row counts, [B, N].
    """
    ranked = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[ranked]) != 0, True))  # the last of equal scores
    drawn, kind = weights[:, ranked], positive[ranked]
    hits = np.cumsum(drawn * kind, axis=1)[:, ends]
    misses = np.cumsum(drawn * ~kind, axis=1)[:, ends]
    more_hits, more_misses = np.diff(hits, axis=1, prepend=0.0), np.diff(misses, axis=1, prepend=0.0)
    all_hits, all_misses = hits[:, -1], misses[:, -1]
    both = all_hits * all_misses
    roc = (more_misses * (hits - more_hits / 2)).sum(axis=1) / both
    precision = np.where(more_hits > 0, hits / (hits + misses), 0.0)
    pr = (more_hits * precision).sum(axis=1) / all_hits
    return np.where(both > 0, roc, np.nan), np.where(both > 0, pr, np.nan)


def mean_of_defined(values: Sequence[Floats]) -> Floats:
    """Over the classes that a resample has, [B] each."""
    stacked = np.asarray(values)
    there = np.isfinite(stacked)
    return np.asarray(np.where(there, stacked, 0).sum(axis=0) / there.sum(axis=0))
