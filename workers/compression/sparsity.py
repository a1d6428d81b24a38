"""Unstructured pruning, as a size alone: a graph without its least weights is as fast as with them and packs better."""

import math
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from workers.compression.graphs import Model, copied
from workers.compression.measuring import Measuring
from workers.compression.weights import matrices_of

SHARES = (0.5, 0.7, 0.9)
PACKED_PER_S = 10e6  # bytes that are sorted and packed, at least
_LEVEL = 1  # of zlib: the least weights are looked for to compare, not to store


def without_least(model: Model, share: float) -> Model:
    """With zeros for that share, 0 … 1, of the numbers of each matrix, kernel and table: for the least ones."""
    model = copied(model)
    for tensor in matrices_of(model):
        value = numpy_helper.to_array(tensor).copy()
        count = round(share * value.size)
        least = np.argpartition(np.abs(value), count - 1, axis=None)[:count]
        value.flat[least] = 0.0
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return model


def sparse_sizes(measuring: Measuring) -> Iterator[dict[str, Any]]:
    """One JSON object for each share until one is beyond the budget: packed bytes (DEFLATE) and what is lost.

    Nothing for a graph without such weights.
    """
    full = measuring.maker.material.model
    graph = onnx.load_from_string(full)
    if not matrices_of(graph):
        return
    packed = _packed(full)
    for share in SHARES:
        raw = without_least(graph, share).SerializeToString()
        loss = measuring.loss(raw)
        if not math.isfinite(loss.measured):
            return
        size = _packed(raw)
        yield {"share": share, "packed_bytes": size, "smaller": round(packed / size, 4), "loss": asdict(loss)}
        if not loss.within:
            return


def _packed(raw: bytes) -> int:
    return len(zlib.compress(raw, _LEVEL))
