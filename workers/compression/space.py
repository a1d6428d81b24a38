"""Which recipes suit a graph: choices, each with options, that make up a recipe; and what is tried first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from workers.compression.cheaper import cheaper_layers
from workers.compression.foreign_pictures import NETWORKS, is_picture
from workers.compression.graphs import PRODUCTS, Model, operators_of
from workers.compression.int8 import CONVOLUTIONS, EVERYTHING
from workers.compression.layers import shorter_encoders
from workers.compression.low_rank import share_of_products
from workers.compression.material import Material
from workers.compression.products import weighted
from workers.compression.pruning import can_prune
from workers.compression.recipes import Step
from workers.compression.students import BOOSTERS, can_boost, smaller
from workers.compression.teaching import can_teach
from workers.compression.trees import FRACTIONS, Forest, has_tree_order
from workers.evaluation.complexity import TREE_OPERATORS

_NONE = "none"
LEARNT = ("student", "layers")  # choices whose options take a training
_LARGE = 100_000  # bytes of a network that trees may be faster than
_LARGE_SHARE = 0.25  # of the bytes, from which on products are worth recipes of their own beside convolutions
_SHARES = tuple(map(str, FRACTIONS))
_TOLERANCES = ("0.02", "0.1", "0.3")
_ENERGIES = ("0.98", "0.9", "0.75")
_PRUNED: dict[str, Step] = {
    "channels 0.7": {"step": "prune", "keep": 0.7, "importance": "taylor"},
    "channels 0.5": {"step": "prune", "keep": 0.5, "importance": "taylor"},
    "channels 0.35": {"step": "prune", "keep": 0.35, "importance": "taylor"},
    "channels 0.5, magnitude": {"step": "prune", "keep": 0.5, "importance": "magnitude"},
}
_FORMS: dict[str, Step] = {
    "simplified": {"step": "simplify"},
    "fused": {"step": "fuse", "fast_gelu": False},
    "fused, fast GELU": {"step": "fuse", "fast_gelu": True},
}
_STORAGES: dict[str, Step] = {"bytes": {"step": "byte_weights"}, "half": {"step": "half_weights"}}
Picked = Mapping[str, str]
_DYNAMIC: Step = {"step": "quantize", "method": "dynamic", "operators": ["MatMul", "Gemm"]}
STATIC: Step = {
    "step": "quantize", "method": "static", "operators": list(CONVOLUTIONS), "activations": "uint8",
    "calibration": "min-max",
}  # fmt: skip
_WIDE: Step = {**STATIC, "operators": list(EVERYTHING)}
WEIGHTS_ALONE: Step = {**STATIC, "operators": ["MatMul", "Gemm"], "float_between": True}
_PRECISIONS: dict[str, Step] = {
    "products": WEIGHTS_ALONE,
    "products, int8": {**WEIGHTS_ALONE, "activations": "int8"},
    "products, entropy": {**WEIGHTS_ALONE, "calibration": "entropy"},
    "products, percentile": {**WEIGHTS_ALONE, "calibration": "percentile"},
    "products, tables": {**WEIGHTS_ALONE, "operators": ["MatMul", "Gemm", "Gather"]},
    "dynamic": _DYNAMIC,
    "dynamic, tables": {**_DYNAMIC, "operators": ["MatMul", "Gemm", "Attention", "Gather"]},
    "8 bits, weights": {"step": "quantize", "method": "weights", "bits": 8},
    "4 bits, weights": {"step": "quantize", "method": "weights", "bits": 4},
    "convolutions": STATIC,
    "static": _WIDE,
    "static, int8": {**_WIDE, "activations": "int8"},
    "static, entropy": {**_WIDE, "calibration": "entropy"},
    "static, percentile": {**_WIDE, "calibration": "percentile"},
    "half": {"step": "half"},
}


@dataclass(frozen=True, slots=True)
class Space:
    """`choices` have options by name, `first` are picked before any search; `alone` are whole recipes."""

    choices: Mapping[str, Sequence[str]]
    first: Sequence[Picked]
    trees: bool
    # Of networks, by the names of the options: what is taught.
    students: Mapping[str, Step] = field(default_factory=dict)
    layers: Mapping[str, Step] = field(default_factory=dict)
    alone: Sequence[Sequence[Step]] = ()

    @classmethod
    def of(cls, material: Material, graph: Model, *, half: bool = False) -> "Space":
        """Everything that suits the graph; without choices nothing does. `half`: half precision, as on a GPU, too."""
        operators = operators_of(graph)
        network = bool(operators & (PRODUCTS | {"Conv"})) and not operators & TREE_OPERATORS
        return _network(material, graph, half=half) if network else _trees(material, graph)

    def recipe(self, picked: Picked) -> list[Step] | None:
        """The steps in their order; None if they do not go together."""
        return _tree_recipe(picked) if self.trees else _network_recipe(picked, self.students, self.layers)


def usual_precision(graph: Model, *, half: bool = False) -> Step | None:
    """A network's precision when nothing is searched: int8, or half precision; None where there are no products.

    int8 with ranges that are known beforehand: those that are found at run time are the whole batch's, and what a row
    is answered would depend on the rows beside it.
    """
    convolutions = "Conv" in operators_of(graph)
    if half:
        return _PRECISIONS["half"] if convolutions or weighted(graph, PRODUCTS) else None
    if convolutions:
        return STATIC
    return WEIGHTS_ALONE if weighted(graph, PRODUCTS) else None


def shorter(graph: Model) -> list[list[Step]]:
    """Recipes that leave the last trees out of a graph exported here, the shortest first."""
    forest = Forest.of(graph)
    return [[{"step": "first_trees", "share": share}] for share in FRACTIONS if forest.size(share) < forest.trees]


def _trees(material: Material, graph: Model) -> Space:
    choices: dict[str, Sequence[str]] = {"leaves": (_NONE, *_TOLERANCES), "trees": (_NONE, *_SHARES)}
    ordered = has_tree_order(graph)
    first = [{"trees": share} for share in ("0.5", "0.2")] if ordered else []
    if can_boost(material):
        choices["student"] = (_NONE, *BOOSTERS) if ordered else tuple(BOOSTERS)
        first += [{"student": size} for size in BOOSTERS]
        first += [{"student": "medium", "leaves": "0.1"}]
    elif not ordered:
        return Space({}, [], trees=True)
    return Space(choices, [_whole(choices, some) for some in first], trees=True)


def _network(material: Material, graph: Model, *, half: bool) -> Space:
    operators = operators_of(graph)
    products, convolutions = operators & PRODUCTS, "Conv" in operators
    looked_up = bool(weighted(graph, frozenset({"Gather"})))
    names = ["convolutions", *(name for name in _PRECISIONS if name.startswith("static"))] if convolutions else []
    if products and (not convolutions or "LayerNormalization" in operators):
        names += [name for name in _PRECISIONS if name.startswith("products") and (looked_up or "tables" not in name)]
    if products and not convolutions:
        names += ["dynamic"] + (["dynamic, tables"] if looked_up else [])
    if large := bool(products) and (not convolutions or share_of_products(graph) >= _LARGE_SHARE):
        names += ["8 bits, weights", "4 bits, weights"]
    if half:
        names.append("half")
    choices: dict[str, Sequence[str]] = {"precision": (_NONE, *sorted(names)), "storage": (_NONE, *_STORAGES)}
    if large:
        choices["rank"] = (_NONE, *_ENERGIES)
    if forms := _forms(material, operators):
        choices["graph"] = (_NONE, *forms)
    if students := _students(material, graph):
        choices["student"] = (_NONE, *students)
    if layers := cheaper_layers(material, gelu=bool(operators & {"Gelu", "Erf"}), products=large):
        choices["layers"] = (_NONE, *layers)
    first = [_whole(choices, some) for some in _network_first(choices)]
    return Space(choices, first, trees=False, students=students, layers=layers, alone=_trees_in_its_place(material))


def _forms(material: Material, operators: frozenset[str]) -> list[str]:
    """Of the graph; what is exported here has nothing to simplify."""
    forms = ["simplified"] if material.origin is None else []
    if {"Softmax", "LayerNormalization", "MatMul"} <= operators:
        forms += ["fused", "fused, fast GELU"] if "Gelu" in operators else ["fused"]
    return forms


def _students(material: Material, graph: Model) -> dict[str, Step]:
    """What can be taught; first networks that begin with the full model's weights, for they learn in less time."""
    origin = material.origin
    if material.job is None:
        return {}
    signature, judge = material.prepared.signature, material.judge
    if origin is None and is_picture(signature, judge.answering, judge.task):
        return {f"{size} network": {"step": "student", "of": "pictures", "size": size} for size in NETWORKS}
    if origin is None or not can_teach(material):
        return {}
    students = {
        size: {"step": "student", "of": "networks", "size": size} for size in smaller(origin.family, origin.params)
    }
    return {**(_PRUNED if can_prune(material) else {}), **shorter_encoders(material, graph), **students}


def _trees_in_its_place(material: Material) -> list[list[Step]]:
    """Trees that learn what a network over tables answers, unless it is so small that no trees are faster."""
    if material.job is None or len(material.model) < _LARGE or not can_boost(material):
        return []
    return [[{"step": "student", "of": "trees", "size": size}] for size in BOOSTERS]


def _network_first(choices: Mapping[str, Sequence[str]]) -> list[Picked]:
    """Each technique alone, and those together that mostly add up."""
    precisions = [name for name in choices["precision"] if name != _NONE]
    preferred = ("half", "static") if "convolutions" in precisions else ("half", "products, tables", "products")
    best = next(name for name in preferred if name in precisions)
    first: list[Picked] = [{"precision": best}]
    forms = choices.get("graph", ())
    fusions = [name for name in forms if name.startswith("fused")][-1:]
    fused = {"graph": fusions[0]} if fusions and best != "static" else {}
    together = {"precision": best, **fused}
    first += [{choice: name, **together} for choice in LEARNT for name in choices.get(choice, ())[1:]]
    first += [{"graph": name, "precision": best} for name in fusions]
    first += [{"graph": name} for name in forms if name == "simplified"]
    first += [{"precision": name} for name in sorted(precisions) if name != best]
    if best != "half":  # which leaves no weights to store otherwise
        first.append({"precision": "convolutions" if best == "static" else best, "storage": "bytes"})
    first += [{"storage": name} for name in _STORAGES]
    first += [{"rank": energy} for energy in choices.get("rank", ())[1:]]
    return first


def _whole(choices: Mapping[str, Sequence[str]], some: Picked) -> Picked:
    """With the first option of every other choice."""
    return {name: some.get(name, options[0]) for name, options in choices.items()}


def _network_recipe(picked: Picked, students: Mapping[str, Step], layers: Mapping[str, Step]) -> list[Step] | None:
    steps: list[Step] = []
    for choice, taught in zip(LEARNT, (students, layers), strict=True):
        if (name := picked.get(choice, _NONE)) != _NONE:
            steps.append(taught[name])
    if (energy := picked.get("rank", _NONE)) != _NONE:
        steps.append({"step": "low_rank", "energy": float(energy)})
    if (form := picked.get("graph", _NONE)) != _NONE:
        steps.append(_FORMS[form])
    if (precision := picked["precision"]) != _NONE:
        steps.append(_PRECISIONS[precision])
    if (storage := picked["storage"]) != _NONE:
        if precision == "half":
            return None
        steps.append(_STORAGES[storage])
    return steps or None


def _tree_recipe(picked: Picked) -> list[Step] | None:
    steps: list[Step] = []
    if (size := picked.get("student", _NONE)) != _NONE:
        steps.append({"step": "student", "of": "trees", "size": size})
    if (share := picked["trees"]) != _NONE:
        steps.append({"step": "first_trees", "share": float(share)})
    if (tolerance := picked["leaves"]) != _NONE:
        steps.append({"step": "merge_leaves", "tolerance": float(tolerance)})
    return steps or None
