"""Decision trees as one ONNX TreeEnsembleRegressor node."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from workers.export.graph import ML, Graph


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
    """Trees whose leaf weights are added up per target. Rows go to the true child when `feature <= threshold`.

    A forest has millions of nodes: they are kept as arrays, since Python's numbers take several times the memory.
    """

    n_targets: int
    _columns: dict[str, list[npt.NDArray[Any]]] = field(default_factory=lambda: defaultdict(list))  # one a tree
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
        leaves, targets = np.flatnonzero(leaf), weights.shape[1]
        self._extend(
            nodes_treeids=np.full(size, tree),
            nodes_nodeids=np.arange(size),
            nodes_featureids=np.where(leaf, 0, feature),
            nodes_modes=np.where(leaf, b"LEAF", b"BRANCH_LEQ"),
            nodes_values=floor_float32(np.where(leaf, 0.0, threshold)),
            nodes_truenodeids=np.where(leaf, 0, left),
            nodes_falsenodeids=np.where(leaf, 0, right),
            nodes_missing_value_tracks_true=np.where(leaf, 0, missing_left),
            target_treeids=np.full(len(leaves) * targets, tree),
            target_nodeids=np.repeat(leaves, targets),
            target_ids=np.tile(np.arange(first_target, first_target + targets), len(leaves)),
            target_weights=weights[leaves].astype(np.float32).ravel(),
        )

    def to_node(self, graph: Graph, features: str) -> str:
        """Add the node to `graph`: features FP32 [N, F] to scores FP32 [N, n_targets]."""
        settings: dict[str, Any] = {"n_targets": self.n_targets, "aggregate_function": "SUM", "post_transform": "NONE"}
        return graph.add("TreeEnsembleRegressor", features, domain=ML, columns=self._columns, **settings)

    def _extend(self, **columns: npt.NDArray[Any]) -> None:
        for name, values in columns.items():
            self._columns[name].append(values.astype(np.int32) if values.dtype.kind in "bi" else values)
