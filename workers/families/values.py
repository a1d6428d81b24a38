"""Numbers that come again and again, as a rate of a day or a price of a list: how the target goes with each of them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workers.export.graph import ML, Graph
from workers.families.target_means import target_means
from workers.learning import Array

_ROWS_EACH = 20  # on average; a value of few rows is drawn to the overall mean
_FEWEST = 3  # two are told apart by one split


def come_again(x: npt.NDArray[np.float32], most: int) -> list[int]:
    """Columns of training rows, FP32 [N, n], of at most so many values, each in enough rows on average."""
    found = []
    for column in range(x.shape[1]):
        there = x[~np.isnan(x[:, column]), column]
        if _FEWEST <= (values := len(np.unique(there))) <= most and len(there) >= _ROWS_EACH * values:
            found.append(column)
    return found


@dataclass(frozen=True, slots=True)
class Values:
    """For some columns of numbers the target's mean at each value, less the overall mean; 0 at any other value."""

    columns: tuple[int, ...]
    known: tuple[npt.NDArray[np.float32], ...]  # ascending, of each column
    means: tuple[npt.NDArray[np.float32], ...]

    @classmethod
    def learn(
        cls, x: npt.NDArray[np.float32], targets: npt.NDArray[np.float64], most: int, folds: npt.NDArray[np.int64]
    ) -> tuple["Values | None", npt.NDArray[np.float32]]:
        """Of those columns of training rows, FP32 [N, n], that have at most so many values; and the rows' features.

        Args:
            x: NaN where a number is missing.
            targets: [N, 1], or a column a class.
            most: values of a column.
            folds: which rows are valued without each other, [N].
        """
        found, features = [], []
        for column in come_again(x, most):
            known, codes = np.unique(x[:, column], return_inverse=True)
            means, rows = target_means(codes, len(known), targets, folds)
            there = ~np.isnan(known)
            found.append((column, known[there], means[there]))
            features.append(np.where(there[codes], rows, np.float32(0)))
        if not found:
            return None, x[:, :0]
        columns, values, tables = zip(*found, strict=True)
        return cls(columns, values, tables), np.stack(features, axis=1)

    def transform(self, x: Array) -> npt.NDArray[np.float32]:
        """FP32 [N, n] to FP32 [N, columns], of rows that were not learnt from."""
        parts = []
        for column, known, means in zip(self.columns, self.known, self.means, strict=True):
            at = np.minimum(np.searchsorted(known, x[:, column]), len(known) - 1)
            parts.append(np.where(known[at] == x[:, column], means[at], np.float32(0)))
        return np.stack(parts, axis=1)

    def to_nodes(self, graph: Graph, name: str) -> str:
        """The same as nodes."""
        parts = []
        for column, known, means in zip(self.columns, self.known, self.means, strict=True):
            picked = graph.add("Gather", name, graph.constant([column], np.int64), axis=1)
            table = {"keys_floats": known.tolist(), "values_floats": means.tolist(), "default_float": 0.0}
            parts.append(graph.add("LabelEncoder", picked, domain=ML, **table))
        return parts[0] if len(parts) == 1 else graph.add("Concat", *parts, axis=1)
