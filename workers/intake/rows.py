"""Made-up rows of an imported model: small at first, then of very different sizes beside each other."""

from typing import Any

import numpy as np
import numpy.typing as npt

from app.core.signature import Datatype
from app.serving.bfloat16 import from_bits, to_bits
from app.serving.tensors import DTYPES

Levels = tuple[int, ...]  # of each row
# By level: the largest integer, the spread of floats, and the words that texts are made of, with how many of them.
_INTEGERS = (0, 1, 100, 10_000)
_FLOATS = (0.0, 1.0, 10.0, 1000.0)
_WORDS = (("",), ("a", "b"), ("7", "a b", "-2.5", "Word"), ("10000", "a much longer text, of words", "0.001"))
_REPEATS = (1, 1, 1, 8)
SMALL = 1  # what the first run is made of


def rows(datatype: Datatype, shape: list[int], levels: Levels, seed: int = 0) -> npt.NDArray[Any]:
    """An array of this shape whose rows are of these levels."""
    rng = np.random.default_rng(seed)
    return np.stack([values(datatype, shape[1:], rng, level) for level in levels])


def values(datatype: Datatype, shape: list[int], rng: np.random.Generator, level: int = SMALL) -> npt.NDArray[Any]:
    """An array of one level: noise, whole numbers, or texts."""
    if datatype == "BYTES":
        chosen = rng.choice(_WORDS[level], (*shape, _REPEATS[level]))
        texts = [" ".join(words).strip() for words in chosen.reshape(-1, _REPEATS[level])]
        return np.array(texts, np.object_).reshape(shape)
    if datatype == "BF16":
        return from_bits(to_bits((rng.standard_normal(shape) * _FLOATS[level]).astype(np.float32)))
    dtype = DTYPES[datatype]
    if dtype.kind == "f":
        return np.asarray(rng.standard_normal(shape) * _FLOATS[level]).astype(dtype)
    most = min(_INTEGERS[level], 1 if dtype.kind == "b" else int(np.iinfo(dtype).max))
    return np.asarray(rng.integers(0, most + 1, shape)).astype(dtype)
