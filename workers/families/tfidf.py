"""Texts as sparse rows of TF-IDF, and the same times a matrix of weights as ONNX nodes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp  # type: ignore[import-untyped]  # no stubs
from onnx import TensorProto, helper

from workers.export.graph import Graph
from workers.families.ngrams import Ngrams, Sizes
from workers.families.tokens import Kind, Tokens, cut_nodes, flat_rows, run_nodes
from workers.learning import Array

_LEAST = 1e-6  # a weight of a text without known n-grams, which is divided by
_WIDE = 16  # columns from which on a batch's rows are summed one by one


@dataclass(frozen=True, slots=True)
class Channel:
    """N-grams of words, or of characters; their columns are their numbers. `idf` FP64 [columns] is 0 for what is none.

    A text's value of an n-gram is `times * idf`, over the root of the text's sum of `times * idf²`. Of n-grams that
    occur once, as nearly all do in short texts, this is TF-IDF of length one; long texts need no sorting of n-grams.
    """

    tokens: Tokens
    ngrams: Ngrams
    idf: npt.NDArray[np.float64]
    most: int  # characters of a text that are read

    @classmethod
    def learn(cls, kind: Kind, sizes: Sizes, texts: Array, params: Mapping[str, Any], limit: int) -> "Channel":
        """Of training texts, str objects [N, t]; at most `limit` tokens and n-grams."""
        most = params["max_characters"]
        tokens = Tokens.learn(kind, texts, most, params["min_rows"], limit)
        if not tokens.count:
            return cls(tokens, Ngrams(0, sizes, (), np.zeros(1, np.int64)), np.zeros(1), most)
        numbers = run_nodes(lambda graph: tokens.to_nodes(graph, cut_nodes(graph, most), 1), texts, "INT64", 2)
        flat, row = flat_rows(numbers)
        ngrams = Ngrams.learn(flat, row, tokens.count, sizes, params["min_rows"], limit - tokens.count)
        idf = np.zeros(len(ngrams.rows))
        idf[ngrams.counted] = np.log((1 + len(texts)) / (1 + ngrams.rows[ngrams.counted])) + 1
        return cls(tokens, ngrams, idf, most)

    @property
    def size(self) -> int:
        """N-grams that count."""
        return len(self.idf[self.ngrams.counted])

    def transform(self, texts: Array) -> sp.csr_matrix:
        """Str objects [N, t] to FP64 [N, columns]."""
        numbers = run_nodes(lambda graph: self._numbers(graph, cut_nodes(graph, self.most)), texts, "INT64", 2)
        return sp.csr_matrix(sp.vstack([self._rows(batch) for batch in numbers]))

    def _rows(self, numbers: Array) -> sp.csr_matrix:
        columns = len(self.idf)
        pair, times = np.unique(np.nonzero(numbers)[0] * columns + numbers[numbers > 0], return_counts=True)
        row, column = np.divmod(pair, columns)
        weight = np.bincount(row, times * self.idf[column] ** 2, minlength=len(numbers))
        value = times * self.idf[column] / np.sqrt(np.maximum(weight, _LEAST))[row]
        return sp.csr_matrix((value, (row, column)), shape=(len(numbers), columns))

    def _numbers(self, graph: Graph, texts: str) -> str:
        return self.ngrams.to_nodes(graph, self.tokens.to_nodes(graph, texts, self.ngrams.sizes.longest))

    def to_nodes(self, graph: Graph, texts: str, weights: Array) -> str:
        """From texts [N, t] to `transform(texts) @ weights`, FP32 [N, K], for weights [columns, K]."""
        table = np.concatenate([self.idf[:, None] * weights, self.idf[:, None] ** 2], axis=1)
        last = table.shape[1] - 1
        total = _sums(graph, table, self._numbers(graph, texts))
        score = graph.add("Slice", total, *(graph.constant([value], np.int64) for value in (0, last, 1)))
        weight = graph.add("Slice", total, *(graph.constant([value], np.int64) for value in (last, last + 1, 1)))
        floor = graph.add("Max", weight, graph.constant([_LEAST], np.float32))
        return graph.add("Div", score, graph.add("Sqrt", floor))


def transform(channels: Sequence[Channel], texts: Array) -> sp.csr_matrix:
    """The channels' columns side by side."""
    return sp.csr_matrix(sp.hstack([channel.transform(texts) for channel in channels]))


def product_nodes(graph: Graph, channels: Sequence[Channel], weights: Array) -> str:
    """`transform(channels, text) @ weights` as nodes over the input `text`: FP32 [N, K]."""
    texts = cut_nodes(graph, channels[0].most)
    ends = np.cumsum([len(channel.idf) for channel in channels])[:-1]
    parts = [
        channel.to_nodes(graph, texts, part) for channel, part in zip(channels, np.split(weights, ends), strict=True)
    ]
    return parts[0] if len(parts) == 1 else graph.add("Add", *parts)


def _sums(graph: Graph, table: Array, numbers: str) -> str:
    """From numbers [N, P] to the sum of their rows of `table` [columns, width], FP32 [N, width].

    Many rows of a wide table would take N * P * width numbers at once, so those are summed row by row.
    """
    values, axis = graph.constant(table, np.float32), graph.constant([-2], np.int64)
    if table.shape[1] < _WIDE:
        return graph.add("ReduceSum", graph.add("Gather", values, numbers, axis=0), axis, keepdims=0)
    body = helper.make_graph(
        [
            helper.make_node("Gather", [values, "row"], ["picked"], axis=0),
            helper.make_node("ReduceSum", ["picked", axis], ["total"], keepdims=0),
        ],
        "row_by_row",
        [helper.make_tensor_value_info("row", TensorProto.INT64, ["length"])],
        [helper.make_tensor_value_info("total", TensorProto.FLOAT, [table.shape[1]])],
    )
    return graph.add("Scan", numbers, body=body, num_scan_inputs=1)
