"""N-grams of tokens: learnt in numpy, found by ONNX nodes.

A text is not turned into one number for each known n-gram, nearly all of them zero: its n-grams are looked up where
they stand. A token's number and the next one make a key, whose number and the next token make a key, and so on. So the
work grows with the text and not with the dictionary.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from workers.export.graph import ML, Graph

_END = 2**63 - 1
Integers = npt.NDArray[np.int64]


class Sizes(NamedTuple):
    """Tokens of the shortest and of the longest n-gram that counts."""

    shortest: int
    longest: int


@dataclass(frozen=True, slots=True)
class Ngrams:
    """The known n-grams. A token is its own number; those of 2, 3, … tokens are numbered on from there.

    `keys[k]` are the n-grams of k + 2 tokens, ascending: the number of the first k + 1 tokens times `tokens` + 1, plus
    the last token. `rows` [size] are the training rows that hold each number; number 0 is any other n-gram.
    """

    tokens: int
    sizes: Sizes
    keys: tuple[Integers, ...]
    rows: Integers

    @classmethod
    def learn(cls, flat: Integers, row: Integers, tokens: int, sizes: Sizes, min_rows: int, most: int) -> "Ngrams":
        """The n-grams in at least `min_rows` rows, or those in more rows if there are more than `most`.

        Args:
            flat: token numbers [T] of all texts, 0 for unknown ones; texts are divided by a zero.
            row: each one's row, ascending.
            tokens: the largest number.
            sizes: of n-grams.
            min_rows: at least this many rows hold an n-gram.
            most: n-grams of two tokens and more.
        """
        levels = _levels(flat, row, tokens, sizes.longest, min_rows)
        counts = np.concatenate([rows for _, rows in levels]) if levels else np.zeros(0, np.int64)
        if len(counts) > most:  # whatever holds a kept n-gram's first tokens is as frequent, and is kept too
            least = int(np.sort(counts)[len(counts) - most - 1]) + 1
            levels = _levels(flat, row, tokens, sizes.longest, least)
        single = np.zeros(tokens + 1, np.int64)
        found, counts = _rows_of(flat[flat > 0], row[flat > 0], tokens + 1)
        single[found] = counts
        rows = np.concatenate([single, *(rows for _, rows in levels)])
        return cls(tokens, sizes, tuple(keys for keys, _ in levels), rows)

    @property
    def counted(self) -> slice:
        """Numbers of n-grams that are long enough; shorter ones are the beginnings of others."""
        begin = 1
        for size, count in enumerate([self.tokens, *map(len, self.keys)], start=1):
            if size >= self.sizes.shortest:
                break
            begin += count
        return slice(begin, None)

    def to_nodes(self, graph: Graph, numbers: str) -> str:
        """From token numbers [N, at least `longest`] to the numbers of the n-grams that begin at each, [N, …]."""
        state, first = numbers, self.tokens + 1
        found = [numbers] if self.sizes.shortest == 1 else []
        for level, keys in enumerate(self.keys):
            begun = _columns(graph, state, 0, -1)
            following = _columns(graph, numbers, level + 1, _END)
            key = graph.add("Add", graph.add("Mul", begun, graph.constant(self.tokens + 1, np.int64)), following)
            state = graph.add(
                "LabelEncoder", key, domain=ML, keys_int64s=keys.tolist(),
                values_int64s=list(range(first, first + len(keys))), default_int64=0,
            )  # fmt: skip
            first += len(keys)
            if level + 2 >= self.sizes.shortest:
                found.append(state)
        return found[0] if len(found) == 1 else graph.add("Concat", *found, axis=1)


def _columns(graph: Graph, name: str, start: int, end: int) -> str:
    return graph.add("Slice", name, *(graph.constant([value], np.int64) for value in (start, end, 1)))


def _levels(flat: Integers, row: Integers, tokens: int, longest: int, least: int) -> list[tuple[Integers, Integers]]:
    """Keys and rows of n-grams of 2, 3, … tokens, as far as there are any."""
    levels: list[tuple[Integers, Integers]] = []
    state, first = flat, tokens + 1
    for size in range(2, longest + 1):
        begun, following = state[:-1], flat[size - 1 :]
        whole = np.flatnonzero((begun > 0) & (following > 0))
        key = begun[whole] * (tokens + 1) + following[whole]
        keys, rows = _rows_of(key, row[whole], first * (tokens + 1))
        keys, rows = keys[rows >= least], rows[rows >= least]
        if not len(keys):
            break
        levels.append((keys, rows))
        at = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
        state = np.zeros(len(begun), np.int64)
        state[whole] = np.where(keys[at] == key, first + at, 0)
        first += len(keys)
    return levels


def _rows_of(values: Integers, row: Integers, bound: int) -> tuple[Integers, Integers]:
    """The different values, all below `bound`, ascending, and how many rows hold each."""
    total = int(row.max(initial=0)) + 1
    if bound * total >= _END:
        raise ValueError("too many rows and n-grams to be counted")
    pairs = np.unique(values * total + row)
    found, counts = np.unique(pairs // total, return_counts=True)
    return found, counts.astype(np.int64)
