"""A recipe is a list of steps, each a JSON object. With the same seed it makes the same file from the same version."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from workers.compression.aside import files_in
from workers.compression.cheaper import cheaper_network
from workers.compression.foreign_pictures import picture_student
from workers.compression.fuse import fuse, simplify
from workers.compression.graphs import Model, operators_of
from workers.compression.half import in_half
from workers.compression.int8 import Static, quantize_weights
from workers.compression.layers import short_encoder
from workers.compression.low_rank import low_rank
from workers.compression.material import Material
from workers.compression.pruning import pruned_network
from workers.compression.rounding import rounding_network
from workers.compression.students import boosted_student, network_student
from workers.compression.trees import Forest, has_tree_order
from workers.compression.weights import byte_weights, half_weights, weight_only
from workers.training.files import write_atomically

Step = Mapping[str, Any]
Recipe = Sequence[Step]
_STATICS = 3  # quantizers that are kept, each with copies of its model on disk
EXPORTED = frozenset({"student", "prune", "drop_layers", "cheapen"})  # steps that give a network as a family exports it
TRAINED = EXPORTED | {"learn_rounding"}  # steps in which a network or trees learn


def key_of(recipe: Recipe) -> str:
    """The same for equal recipes."""
    return json.dumps(list(recipe), sort_keys=True)


@dataclass(slots=True)
class Maker:
    """Carries recipes out; what recipes have in common is made once. Students have until `deadline`.

    What was taught takes long: its graph is kept in the folder `taught`, if there is one, for a later attempt too.
    """

    material: Material
    deadline: float = float("inf")
    taught: Path | None = None
    _made: dict[str, bytes] = field(default_factory=dict)
    _failed: set[str] = field(default_factory=set)
    _static: dict[str, Static] = field(default_factory=dict)

    def make(self, recipe: Recipe) -> bytes:
        """The serialised model. Raises whatever a step raises that does not suit the graph."""
        if not recipe:
            return self.material.model
        key = key_of(recipe)
        if key not in self._made:
            kept = self._kept(recipe)
            if kept is not None and kept.exists():
                self._made[key] = kept.read_bytes()
            else:
                self._made[key] = raw = self._carry_out(recipe)
                if kept is not None:
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    write_atomically(kept, raw)
        return self._made[key]

    def _carry_out(self, recipe: Recipe) -> bytes:
        before, step = recipe[:-1], recipe[-1]
        self.make(before)
        try:
            given = {k: v for k, v in step.items() if k != "step"}
            with nullcontext() if step["step"] in TRAINED else files_in(self.material.folder):
                made = _STEPS[step["step"]](self, before, given)
            onnx.checker.check_model(made)
        except Exception:
            self._failed.add(key_of(recipe))
            raise
        return bytes(made.SerializeToString())

    def _kept(self, recipe: Recipe) -> Path | None:
        """Where the graph is kept, if a training is the last step of what makes it."""
        if self.taught is None or recipe[-1]["step"] not in TRAINED:
            return None
        model = self.material.once("digest", lambda: hashlib.sha256(self.material.model).hexdigest())
        return self.taught / f"{hashlib.sha256(f'{model} {key_of(recipe)}'.encode()).hexdigest()}.onnx"

    def hopeless(self, recipe: Recipe) -> bool:
        """It begins with what could not be made before."""
        return any(key_of(recipe[:end]) in self._failed for end in range(1, len(recipe)))

    def graph(self, recipe: Recipe) -> Model:
        """What the recipe makes, to be changed."""
        return onnx.load_from_string(self.make(recipe))

    def static(self, before: Recipe) -> Static:
        """The quantizer of what `before` makes."""
        key, material = key_of(before), self.material
        found = self._static.pop(key, None)
        if found is None:
            folder = material.folder / f"static-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
            found = Static(self.graph(before), material.calibration(), material.batch, folder)
        self._static[key] = found  # the last one is the newest
        return found

    def forget(self) -> None:
        """Let go of what was made, but for what was taught and is kept nowhere else."""
        taught = {key: raw for key, raw in self._made.items() if json.loads(key)[-1]["step"] in TRAINED}
        self._made = taught if self.taught is None else {}
        while len(self._static) > _STATICS:
            shutil.rmtree(self._static.pop(next(iter(self._static))).folder, ignore_errors=True)


def _quantize(maker: Maker, before: Recipe, given: dict[str, Any]) -> Model:
    method = given.pop("method")
    if method != "weights" and operators_of(maker.graph(before)).isdisjoint(given["operators"]):
        raise ValueError("no node of these types is in it")
    if method == "static":
        return maker.static(before).quantize(**given)
    if method == "dynamic":
        return quantize_weights(maker.graph(before), **given)
    return weight_only(maker.graph(before), **given)


def _student(maker: Maker, _: Recipe, given: dict[str, Any]) -> Model:
    if given["of"] == "trees":
        return boosted_student(maker.material, given["size"], maker.deadline)
    if given["of"] == "pictures":
        return picture_student(maker.material, given["size"], maker.deadline)
    return network_student(maker.material, given["size"], maker.deadline)


def _learn_rounding(maker: Maker, before: Recipe, given: dict[str, Any]) -> Model:
    return rounding_network(maker.material, maker.graph(before), given["operators"], maker.deadline)


def _cheapen(maker: Maker, before: Recipe, given: dict[str, Any]) -> Model:
    return cheaper_network(maker.material, maker.graph(before), **given, deadline=maker.deadline)


def _low_rank(maker: Maker, before: Recipe, given: dict[str, Any]) -> Model:
    model, count = low_rank(maker.graph(before), given["energy"])
    if not count:
        raise ValueError("no matrix gets smaller at this energy")
    return model


def _forest(maker: Maker, before: Recipe) -> Forest:
    graph = maker.graph(before)
    if not has_tree_order(graph):
        raise ValueError("only of trees that were grown here: the order of others is not known")
    return Forest.of(graph)


_STEPS: dict[str, Callable[[Maker, Recipe, dict[str, Any]], Model]] = {
    "student": _student,
    "drop_layers": lambda maker, _, given: short_encoder(maker.material, **given, deadline=maker.deadline),
    "prune": lambda maker, _, given: pruned_network(maker.material, **given, deadline=maker.deadline),
    "cheapen": _cheapen,
    "learn_rounding": _learn_rounding,
    "fuse": lambda maker, before, given: fuse(maker.graph(before), **given),
    "simplify": lambda maker, before, _: simplify(maker.graph(before)),
    "low_rank": _low_rank,
    "quantize": _quantize,
    "half": lambda maker, before, _: in_half(maker.graph(before)),
    "half_weights": lambda maker, before, _: half_weights(maker.graph(before)),
    "byte_weights": lambda maker, before, _: byte_weights(maker.graph(before)),
    "first_trees": lambda maker, before, given: _forest(maker, before).first(**given),
    "merge_leaves": lambda maker, before, given: _forest(maker, before).merged(given["tolerance"]),
}
