"""Smaller tree ensembles: the last trees left out, and leaves merged that say nearly the same."""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from workers.compression.graphs import TREES, Model, copied, operators_of

FRACTIONS = (0.1, 0.15, 0.2, 0.25, 0.33, 0.5, 0.67, 0.8)
NOTE = "int8 does not apply to trees, whose thresholds decide on raw values; the last trees are left out instead"
_ORDER = "trees"


def has_tree_order(model: Model) -> bool:
    """True for a graph exported here, with an ensemble and the property `trees`, which says how its trees add up."""
    return TREES in operators_of(model) and any(entry.key == _ORDER for entry in model.metadata_props)


@dataclass(frozen=True, slots=True)
class Forest:
    """The one ensemble node of a graph that was exported here."""

    model: Model
    node: onnx.NodeProto
    attributes: dict[str, Any]
    boosted: bool

    @classmethod
    def of(cls, model: Model) -> "Forest":
        """With one TreeEnsembleRegressor and the property `trees`: `boosted` (a sum) or `averaged` (a mean)."""
        node = next(n for n in model.graph.node if n.op_type == TREES)
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        kind = {p.key: p.value for p in model.metadata_props}.get(_ORDER)
        return cls(model, node, attributes, kind == "boosted")

    @property
    def trees(self) -> int:
        """How many."""
        return int(max(self.attributes["nodes_treeids"])) + 1

    def size(self, share: float) -> int:
        """Trees that are this share of all; a boosting round has a tree for each output."""
        outputs = int(self.attributes["n_targets"]) if self.boosted else 1
        return max(1, round(self.trees / outputs * share)) * outputs

    def first(self, share: float) -> Model:
        """The same with this share of its trees, the first ones. ValueError if none would be left out."""
        kept = self.size(share)
        if kept >= self.trees:
            raise ValueError(f"no tree of {self.trees} is left out")
        factor = 1.0 if self.boosted else self.trees / kept
        changed = dict(self.attributes)
        for prefix, ids in (("nodes_", "nodes_treeids"), ("target_", "target_treeids")):
            end = bisect_left(self.attributes[ids], kept)  # trees are in order
            changed |= {name: values[:end] for name, values in self.attributes.items() if name.startswith(prefix)}
        changed["target_weights"] = [weight * factor for weight in changed["target_weights"]]
        return self._with(changed)

    def merged(self, tolerance: float) -> Model:
        """Leaves of one parent that differ by at most `tolerance` of the spread of all leaves become one."""
        weights = np.asarray(self.attributes["target_weights"])
        columns = ("nodes_treeids", "nodes_truenodeids", "nodes_falsenodeids")
        trees, left, right = (np.asarray(self.attributes[name]) for name in columns)
        starts = np.flatnonzero(np.r_[True, trees[1:] != trees[:-1]])
        leaf = np.asarray([mode == b"LEAF" for mode in self.attributes["nodes_modes"]])
        values = _leaf_values(self.attributes, starts, len(trees))
        first = np.repeat(starts, np.diff(np.r_[starts, len(trees)]))
        kept = np.ones(len(trees), bool)
        bound = tolerance * float(weights.std())
        for at in range(len(trees) - 1, -1, -1):  # children come after their parents
            if leaf[at]:
                continue
            yes, no = first[at] + left[at], first[at] + right[at]
            if leaf[yes] and leaf[no] and np.nanmax(np.abs(values[yes] - values[no])) <= bound:
                values[at], leaf[at] = (values[yes] + values[no]) / 2, True
                kept[yes] = kept[no] = False
        return self._with(self._rebuilt(kept, leaf, values, first))

    def _rebuilt(self, kept: Any, leaf: Any, values: Any, first: Any) -> dict[str, Any]:  # noqa: ANN401 - arrays
        """The attributes with the kept nodes, which get numbers in order."""
        old, rank = self.attributes, np.cumsum(kept) - 1
        number = rank - rank[first]  # within its tree; the root is always kept
        rows = np.flatnonzero(kept)
        told = leaf[rows]
        changed = {n: [v[i] for i in rows] for n, v in old.items() if n.startswith("nodes_")}
        changed["nodes_nodeids"] = number[rows].tolist()
        for name in ("nodes_truenodeids", "nodes_falsenodeids"):
            child = np.asarray(old[name])[rows]
            changed[name] = np.where(told, 0, number[first[rows] + child]).tolist()
        changed["nodes_modes"] = ["LEAF" if is_leaf else "BRANCH_LEQ" for is_leaf in told]
        leaves = rows[told]
        targets = np.argwhere(~np.isnan(values[leaves]))
        trees = np.asarray(old["nodes_treeids"])
        at = leaves[targets[:, 0]]
        changed |= {
            "target_treeids": trees[at].tolist(), "target_nodeids": number[at].tolist(),
            "target_ids": targets[:, 1].tolist(), "target_weights": values[at, targets[:, 1]].tolist(),
        }  # fmt: skip
        return dict(old) | changed

    def _with(self, attributes: dict[str, Any]) -> Model:
        copy = copied(self.model)
        node = next(n for n in copy.graph.node if n.op_type == TREES)
        fresh = helper.make_node(TREES, list(node.input), list(node.output), domain=node.domain, **attributes)
        fresh.name = node.name
        node.CopyFrom(fresh)
        return copy


def _leaf_values(attributes: dict[str, Any], starts: Any, count: int) -> Any:  # noqa: ANN401 - arrays
    """What each node adds to each target, NaN for those that it does not touch: [nodes, targets]."""
    values = np.full((count, int(attributes["n_targets"])), np.nan)
    trees = np.asarray(attributes["target_treeids"])
    at = starts[trees] + np.asarray(attributes["target_nodeids"])
    values[at, np.asarray(attributes["target_ids"])] = attributes["target_weights"]
    return values
