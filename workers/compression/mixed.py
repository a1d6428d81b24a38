"""Mixed precision: the layers that a model can least do without go back to floating point."""

from collections.abc import Callable, Sequence
from math import ceil, log2

import numpy as np

from workers.compression.graphs import Model
from workers.export.runtime import open_session, predict
from workers.learning import Inputs

RANKING_ROWS = 64
Quantize = Callable[[Sequence[str]], Model]


def evaluations(layers: int) -> int:
    """How many models are looked at: one for each layer, then the bisection."""
    return layers + ceil(log2(layers + 1))


def ranked_layers(
    full: bytes, quantize: Quantize, layers: Sequence[str], rows: Inputs, threads: int, batch: int
) -> list[str]:
    """The layers, the one first whose quantization alone changes the answers most.

    Args:
        full: the model in floating point.
        quantize: makes the model in which the named layers stay float.
        layers: names of nodes.
        rows: to ask.
        threads: of a session.
        batch: most rows of a run.
    """
    truth = predict(open_session(full, threads), rows, batch).astype(np.float64)

    def change(layer: str) -> float:
        raw = quantize([other for other in layers if other != layer]).SerializeToString()
        answers = predict(open_session(raw, threads), rows, batch)
        error = float(np.mean((answers - truth) ** 2))
        return error if np.isfinite(error) else float("inf")

    changes = {layer: change(layer) for layer in layers}
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
