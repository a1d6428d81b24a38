"""Prediction intervals that hold what they promise: split conformal prediction (Lei and others 2018)."""

import math

import numpy as np

from workers.learning import Array


def rows_needed(coverage: float) -> int:
    """The fewest rows by whose residuals both ends of an interval can be found."""
    tail = (1 - coverage) / 2
    return math.ceil((1 - tail) / tail - 1e-9)


def offsets(residuals: Array, coverage: float) -> tuple[float, float]:
    """How far below and above a prediction its interval ends; the first is negative as a rule.

    A new residual lies below the k-th largest of n with probability k / (n + 1), whatever its distribution, if it is
    drawn as they were. So `coverage` holds for any n, and not only for many. Each end is passed by half of the rest.

    Args:
        residuals: true minus predicted [N] of rows that the model has not learned from, at least `rows_needed`.
        coverage: share of new rows whose value is to lie in the interval.
    """
    ranked, count = np.sort(residuals.astype(np.float64)), len(residuals)
    place = math.ceil((count + 1) * (1 + coverage) / 2 - 1e-9)
    return float(ranked[count - place]), float(ranked[place - 1])
