"""Sums and differences of two numeric columns, which let trees draw slanted borders, as they are on a map."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightgbm as lgb
import numpy as np
import numpy.typing as npt

from workers.export.graph import Graph
from workers.learning import Array

_ROUNDS, _LEAVES, _RATE = 60, 31, 0.1  # of the model that shows which columns go together


@dataclass(frozen=True, slots=True)
class Pairs:
    """For each pair of columns (i, j) the features `x_i / s_i + x_j / s_j` and `x_i / s_i - x_j / s_j`, s the spreads.

    One operation after another in FP32, so that numpy and ONNX Runtime agree to the last bit.
    """

    columns: npt.NDArray[np.int64]  # [pairs, 2]
    inverse_spread: npt.NDArray[np.float32]  # [numeric columns]

    @classmethod
    def of(cls, columns: npt.NDArray[np.int64], x: npt.NDArray[np.float32]) -> "Pairs":
        """These pairs of columns of training rows, FP32 [N, n]; NaN where a number is missing."""
        spread = np.ones(x.shape[1])
        for column in np.unique(columns):
            known = x[~np.isnan(x[:, column]), column].astype(np.float64)
            spread[column] = known.std() or 1.0
        return cls(columns, (1 / spread).astype(np.float32))

    def transform(self, x: Array) -> npt.NDArray[np.float32]:
        """FP32 [N, n] to FP32 [N, 2 * pairs]; missing where either number is."""
        scaled = x * self.inverse_spread
        first, second = scaled[:, self.columns[:, 0]], scaled[:, self.columns[:, 1]]
        return np.concatenate([first + second, first - second], axis=1)

    def to_nodes(self, graph: Graph, name: str) -> str:
        """The same as nodes."""
        scaled = graph.add("Mul", name, graph.constant(self.inverse_spread, np.float32))
        first, second = (graph.add("Gather", scaled, graph.constant(side, np.int64), axis=1) for side in self.columns.T)
        return graph.add("Concat", graph.add("Add", first, second), graph.add("Sub", first, second), axis=1)


def interacting(
    x: npt.NDArray[np.float32], y: Array, columns: int, most: int, settings: Mapping[str, Any]
) -> npt.NDArray[np.int64]:
    """The pairs among the first `columns` features that trees split one right after the other, [up to `most`, 2].

    Found by a small model of these rows; judged by what the second split gains.

    Args:
        x: features of training rows, FP32 [N, features].
        y: their targets, as LightGBM takes them.
        columns: how many features, the first ones, may be in a pair.
        most: how many pairs.
        settings: LightGBM's, of the model that is to learn from the pairs.
    """
    quick = {**settings, "num_leaves": _LEAVES, "learning_rate": _RATE, "feature_fraction": 1.0}
    booster = lgb.train(quick, lgb.Dataset(x, label=y), _ROUNDS)
    gains: Counter[tuple[int, int]] = Counter()
    waiting = [tree["tree_structure"] for tree in booster.dump_model()["tree_info"]]
    while waiting:
        node = waiting.pop()
        for child in (node[side] for side in ("left_child", "right_child") if side in node):
            waiting.append(child)
            if "split_feature" in child:
                first, second = sorted((node["split_feature"], child["split_feature"]))
                if first < second < columns:
                    gains[first, second] += child["split_gain"]
    ranked = sorted(gains, key=lambda pair: (-gains[pair], pair))
    return np.asarray(ranked[:most], np.int64).reshape(-1, 2)
