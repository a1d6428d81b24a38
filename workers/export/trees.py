"""Decision trees as one ONNX TreeEnsembleRegressor node."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from workers.export.graph import ML, Graph

_ATTRIBUTES: tuple[str, ...] = (
    "nodes_treeids", "nodes_nodeids", "nodes_featureids", "nodes_modes", "nodes_values", "nodes_truenodeids",
    "nodes_falsenodeids", "nodes_missing_value_tracks_true", "target_treeids", "target_nodeids", "target_ids",
    "target_weights",
)  # fmt: skip


def floor_float32(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """The largest float32 that is not above each value.

    For a float32 feature x and a double threshold t, `x <= t` holds exactly when `x <= floor_float32(t)` does.
    """
    with np.errstate(over="ignore"):
        near = values.astype(np.float32)
    above = near.astype(np.float64) > values
    near[above] = np.nextafter(near[above], np.float32(-np.inf))
    return near


@dataclass(slots=True)
class Ensemble:
    """Trees whose leaf weights are added up per target. Rows go to the true child when `feature <= threshold`."""

    n_targets: int
    _attributes: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in _ATTRIBUTES})
    _trees: int = 0

    def add_tree(  # noqa: PLR0913 - the columns of a tree table
        self,
        *,
        feature: npt.NDArray[np.int64],
        threshold: npt.NDArray[np.float64],
        left: npt.NDArray[np.int64],
        right: npt.NDArray[np.int64],
        missing_left: npt.NDArray[np.bool_],
        leaf: npt.NDArray[np.bool_],
        weights: npt.NDArray[np.float64],
        first_target: int = 0,
    ) -> None:
        """Add one tree given as arrays over its nodes, the root first.

        Args:
            feature: column that a node tests, int [nodes].
            threshold: float [nodes].
            left: node index when `feature <= threshold`, int [nodes].
            right: node index otherwise, int [nodes].
            missing_left: where NaN goes, bool [nodes].
            leaf: which nodes are leaves, bool [nodes].
            weights: what a leaf adds to targets `first_target …`, float [nodes, targets of this tree].
            first_target: index of the first of them.
        """
        tree, size = self._trees, len(feature)
        self._trees += 1
        nodes = np.arange(size)
        leaves, targets = np.flatnonzero(leaf), weights.shape[1]
        self._extend(
            nodes_treeids=[tree] * size,
            nodes_nodeids=nodes.tolist(),
            nodes_featureids=np.where(leaf, 0, feature).tolist(),
            nodes_modes=np.where(leaf, "LEAF", "BRANCH_LEQ").tolist(),
            nodes_values=floor_float32(np.where(leaf, 0.0, threshold)).tolist(),
            nodes_truenodeids=np.where(leaf, 0, left).tolist(),
            nodes_falsenodeids=np.where(leaf, 0, right).tolist(),
            nodes_missing_value_tracks_true=np.where(leaf, 0, missing_left).astype(int).tolist(),
            target_treeids=[tree] * (len(leaves) * targets),
            target_nodeids=np.repeat(leaves, targets).tolist(),
            target_ids=np.tile(np.arange(first_target, first_target + targets), len(leaves)).tolist(),
            target_weights=weights[leaves].astype(np.float32).ravel().tolist(),
        )

    def to_node(self, graph: Graph, features: str) -> str:
        """Add the node to `graph`: features FP32 [N, F] to scores FP32 [N, n_targets]."""
        settings: dict[str, Any] = {"n_targets": self.n_targets, "aggregate_function": "SUM", "post_transform": "NONE"}
        return graph.add("TreeEnsembleRegressor", features, domain=ML, **settings, **self._attributes)

    def _extend(self, **columns: list[Any]) -> None:
        for name, values in columns.items():
            self._attributes[name] += values
