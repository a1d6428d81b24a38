"""A matrix as the product of two small ones (truncated singular value decomposition)."""

from dataclasses import dataclass

import numpy as np

from workers.learning import Array

SMALLEST = 32  # rows and columns of a matrix that is worth it
_WORTH = 0.8  # of the numbers may be left, or the matrix stays whole


@dataclass(frozen=True, slots=True)
class Factors:
    """`left` [K, R] and `right` [R, N]."""

    left: Array
    right: Array


def factors(matrix: Array, energy: float) -> Factors | None:
    """The nearest product of float32 factors that keeps this share of the sum of squared singular values of [K, N].

    None where the factors would not be smaller.
    """
    u, s, v = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    kept = np.cumsum(s**2) / max(float((s**2).sum()), 1e-30)
    rank = int(np.searchsorted(kept, energy)) + 1
    rows, columns = matrix.shape
    if rank * (rows + columns) > _WORTH * rows * columns:
        return None
    root = np.sqrt(s[:rank])
    return Factors((u[:, :rank] * root).astype(np.float32), (root[:, None] * v[:rank]).astype(np.float32))
