"""Mixed precision: the layers that a model can least do without go back to floating point."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil, log2

import numpy as np

from workers.compression.aside import files_in
from workers.compression.graphs import Model
from workers.compression.int8 import Static
from workers.compression.measuring import Measuring
from workers.compression.recipes import Recipe
from workers.export.runtime import open_session, predict
from workers.learning import Array, take

RANKING_ROWS = 64
Quantize = Callable[[Sequence[str]], Model]


def evaluations(layers: int, known: int = 0) -> int:
    """How many models are looked at: one for each layer that nothing is known of yet, then the bisection."""
    return layers - known + ceil(log2(layers + 1))


@dataclass(slots=True)
class Mixing:
    """Of an int8 recipe that loses too much: which layers have to stay float?"""

    measuring: Measuring
    recipe: Recipe  # its last step quantizes
    layers: list[str] = field(init=False)
    _quantizer: Static = field(init=False)

    def __post_init__(self) -> None:
        step = self.recipe[-1]
        self._quantizer = self.measuring.maker.static(self.recipe[:-1])
        self.layers = self._quantizer.layers(step["operators"], float_between=step.get("float_between", False))

    def fewest_float(self, changes: dict[str, float], between: Callable[[], None]) -> Recipe | None:
        """The recipe with as few of its layers in float as the budget takes; None if all but one are too few.

        Args:
            changes: what the quantization of a layer alone changes, by its name, of those that are known; the others
                are added.
            between: called after each graph that was looked at; what it raises ends the search.
        """
        material, full = self.measuring.maker.material, self.measuring.maker.make(self.recipe[:-1])
        rows = take(material.calibration(), slice(0, RANKING_ROWS))

        def ask(raw: bytes) -> Array:
            return predict(open_session(raw, material.threads), rows, material.batch)

        ranked = ranked_layers(full, self._quantized, self.layers, ask, changes, between)

        def good(kept: Sequence[str]) -> bool:
            between()
            return self.measuring.loss(self._quantized(kept).SerializeToString()).within

        found = fewest_float(ranked, good)
        if found is None or len(found) == len(self.layers):
            return None
        return [*self.recipe[:-1], {**self.recipe[-1], "keep_float": sorted(found)}]

    def _quantized(self, kept: Sequence[str]) -> Model:
        """Not by `maker`, which keeps what it makes: there are as many of these as layers."""
        settings = {name: value for name, value in self.recipe[-1].items() if name not in {"step", "method"}}
        with files_in(self._quantizer.folder):
            return self._quantizer.quantize(**settings, keep_float=sorted(kept))


def ranked_layers(
    full: bytes, quantize: Quantize, layers: Sequence[str], ask: Callable[[bytes], Array],
    changes: dict[str, float] | None = None, between: Callable[[], None] = lambda: None,
) -> list[str]:  # fmt: skip
    """The layers, the one first whose quantization alone changes the answers most.

    Args:
        full: the model in floating point.
        quantize: makes the model in which the named layers stay float.
        layers: names of nodes.
        ask: gives a model's answers to some rows.
        changes: the mean square of what it changes, by layer, as far as it is known; the others are added.
        between: called after each layer.
    """
    changes = {} if changes is None else changes
    truth = ask(full).astype(np.float64)
    for layer in layers:
        if layer not in changes:
            raw = quantize([other for other in layers if other != layer]).SerializeToString()
            error = float(np.mean((ask(raw) - truth) ** 2))
            changes[layer] = error if np.isfinite(error) else sys.float_info.max
            between()
    return sorted(layers, key=lambda layer: -changes[layer])


def fewest_float(ranked: Sequence[str], good: Callable[[Sequence[str]], bool]) -> list[str] | None:
    """The shortest beginning of `ranked` that is good to keep float; None if even all layers are not.

    A longer beginning is taken to be no worse than a shorter one, so that halving finds it.
    """
    low, high, found = 1, len(ranked), None
    while low <= high:
        middle = (low + high) // 2
        if good(ranked[:middle]):
            found, high = list(ranked[:middle]), middle - 1
        else:
            low = middle + 1
    return found
