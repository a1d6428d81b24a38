"""Fewer trees: an ensemble's last trees often cost more time than they bring."""

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import onnx
from onnx import helper

_FRACTIONS = (0.1, 0.15, 0.2, 0.25, 0.33, 0.5, 0.67, 0.8)
_ORDER = "trees"
_OP = "TreeEnsembleRegressor"


def has_tree_order(model: onnx.ModelProto) -> bool:
    """True for a graph exported here, whose property `trees` says how its trees add up."""
    return any(entry.key == _ORDER for entry in model.metadata_props)


def truncate_trees(model: onnx.ModelProto, good_enough: Callable[[bytes], bool]) -> tuple[bytes, dict[str, Any]] | None:
    """Keep the fewest of the first trees that are good enough.

    Args:
        model: with one TreeEnsembleRegressor and the property `trees`: `boosted` (a sum) or `averaged` (a mean).
        good_enough: whether a serialised model may stand for the full one.

    Returns:
        The smaller model and its recipe, or None when no smaller one is good enough.
    """
    kind = {p.key: p.value for p in model.metadata_props}.get(_ORDER)
    node = next(n for n in model.graph.node if n.op_type == _OP)
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    total = int(max(attributes["nodes_treeids"])) + 1
    outputs = int(attributes["n_targets"]) if kind == "boosted" else 1  # a boosting round has a tree for each output
    for fraction in _FRACTIONS:
        kept = max(1, round(total / outputs * fraction)) * outputs
        if kept >= total:
            break
        smaller = _first_trees(model, attributes, kept, 1.0 if kind == "boosted" else total / kept).SerializeToString()
        if good_enough(smaller):
            recipe = {"method": "truncate_trees", "trees": kept, "of": total, "precision": "fp32", "note": NOTE}
            return smaller, recipe
    return None


NOTE = "int8 does not apply to trees, whose thresholds decide on raw values; the last trees are left out instead"


def _first_trees(model: onnx.ModelProto, attributes: dict[str, Any], kept: int, factor: float) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    node = next(n for n in copy.graph.node if n.op_type == _OP)
    changed = dict(attributes)
    for prefix, ids in (("nodes_", "nodes_treeids"), ("target_", "target_treeids")):
        end = bisect_left(attributes[ids], kept)  # trees are in order
        changed |= {name: values[:end] for name, values in attributes.items() if name.startswith(prefix)}
    changed["target_weights"] = [weight * factor for weight in changed["target_weights"]]
    fresh = helper.make_node(_OP, list(node.input), list(node.output), domain=node.domain, **changed)
    node.CopyFrom(fresh)
    return copy
