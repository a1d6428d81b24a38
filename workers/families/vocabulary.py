"""Rows of texts as sequences of word numbers, in training and as the first nodes of a graph."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from app.core.errors import InvalidData
from workers.export.graph import ML, Graph
from workers.families.tokens import Tokens, cut_nodes, run_nodes, token_nodes
from workers.learning import Array

PADDING, UNKNOWN, BEGIN = 0, 1, 2  # nothing; a word that is not known; what each text begins with
SPECIAL = 3  # known words are numbered from here


class TokenReader:
    """Makes tokens of texts: int64, 0 is padding.

    `size` is more than the largest token, `unknown` a word that is not known, and `fixed` are tokens that are no words.
    """

    __slots__ = ()
    size: int
    unknown: int
    fixed: tuple[int, ...]
    max_tokens: int
    max_characters: int

    def to_nodes(self, graph: Graph) -> str:
        """From the input `text` [N, t] to the value `tokens`, INT64 [N, L]."""
        raise NotImplementedError

    def transform(self, texts: Array) -> npt.NDArray[np.int64]:
        """Str objects [N, t] to the same tokens, as wide as the longest row."""
        batches = [batch[:, : _longest(batch)] for batch in run_nodes(self.to_nodes, texts, "INT64", 2)]
        widest = max((batch.shape[1] for batch in batches), default=0)
        padded = [np.pad(batch, ((0, 0), (0, widest - batch.shape[1]))) for batch in batches]
        return np.concatenate([np.zeros((0, widest), np.int64), *padded])


@dataclass(frozen=True, slots=True)
class Vocabulary(TokenReader):
    """The known words, and how much of a row is read.

    A row's texts stand one after the other, each behind a BEGIN, so that no row is without a token. Padding comes last.
    """

    words: Tokens
    columns: int  # texts of a row
    max_tokens: int
    max_characters: int
    size: int
    unknown: int = UNKNOWN
    fixed: tuple[int, ...] = (PADDING, BEGIN)

    @classmethod
    def learn(cls, texts: Array, params: Mapping[str, Any]) -> "Vocabulary":
        """The words of training texts, str objects [N, t].

        Raises:
            InvalidData: no word is in `min_rows` rows.
        """
        least = params["min_rows"]
        words = Tokens.learn("words", texts, params["max_characters"], least, params["max_words"])
        if not words.count:
            msg = f"no word is in {least} training texts; use more rows, or lower params.min_rows"
            raise InvalidData.at("features", msg=msg)
        return cls(
            words, texts.shape[1], params["max_tokens"], params["max_characters"], size=SPECIAL + words.count
        )  # fmt: skip

    def to_nodes(self, graph: Graph) -> str:
        """From the input `text` [N, t] to the value `tokens`, INT64 [N, L], L at most `max_tokens`."""
        keys = [word for word in self.words.numbers if word]
        number = graph.add(
            "LabelEncoder", token_nodes(graph, "words", cut_nodes(graph, self.max_characters)), domain=ML,
            keys_strings=["", *keys], default_int64=UNKNOWN,
            values_int64s=[PADDING, *(self.words.numbers[word] + SPECIAL - 1 for word in keys)],
        )  # fmt: skip
        begins = [graph.constant([0, 0, 1, 0, 0, 0], np.int64), graph.constant(BEGIN, np.int64)]
        rows = graph.add("Reshape", graph.add("Pad", number, *begins), graph.constant([0, -1], np.int64))
        if self.columns > 1:
            rows = packed_nodes(graph, rows)
        ends = [graph.constant([value], np.int64) for value in (0, self.max_tokens, 1)]
        return graph.add("Slice", rows, *ends, output="tokens")


def _longest(tokens: Array) -> int:
    return int((tokens != PADDING).sum(axis=1).max())


def packed_nodes(graph: Graph, rows: str) -> str:
    """Take the padding between texts out: tokens in their order, then zeros.

    A token's place is the number of tokens before it. Padding goes to the last place, which no token of that row has.
    """
    none, last = graph.constant(PADDING, np.int64), graph.constant(-1, np.int64)
    filled = graph.add("Greater", rows, none)
    count = graph.add("Cast", filled, to=TensorProto.INT64)
    place = graph.add("CumSum", count, graph.constant(1, np.int64), exclusive=1)
    target = graph.add("Where", filled, place, last)
    return graph.add("ScatterElements", graph.add("Mul", rows, none), target, rows, axis=1)
