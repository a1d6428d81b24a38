"""Raw table tensors to numbers, twice: in numpy for training and as ONNX nodes for serving."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from workers.export.graph import ML, Graph
from workers.families.pairs import Pairs
from workers.families.target_means import columns_of, folds_of, target_means
from workers.families.values import Values
from workers.learning import Array, Inputs, LearningData, rows_of

MAX_CATEGORIES = 1000  # a column's rarer values count as unseen
_CONSTANT = 1e-12  # of a column's largest number: a spread that rounding alone makes of one value
_TINY = np.finfo(np.float32).tiny  # a smaller spread has no finite inverse


@dataclass(frozen=True, slots=True)
class NumericEncoder:
    """Fills missing numbers. A NaN in `fill` leaves that column's gaps to the model."""

    fill: npt.NDArray[np.float32]

    @classmethod
    def fit(cls, data: LearningData, *, keep_missing: bool) -> "NumericEncoder":
        """Medians of training rows; with `keep_missing` only for columns that have no gap in training."""
        x = data.train.inputs["numeric"]
        gaps = np.isnan(x)
        fill = np.zeros(x.shape[1], np.float32)
        for column in np.flatnonzero(~gaps.all(axis=0)):
            fill[column] = np.median(x[~gaps[:, column], column])
        if keep_missing:
            fill[gaps.any(axis=0)] = np.nan
        return cls(fill)

    def transform(self, x: Array) -> npt.NDArray[np.float32]:
        """FP32 [N, n] to FP32 [N, n]."""
        return np.where(np.isnan(x), self.fill, x)

    def to_nodes(self, graph: Graph, name: str) -> str:
        """The same as nodes."""
        if np.isnan(self.fill).all():
            return name
        return graph.add("Where", graph.add("IsNaN", name), graph.constant(self.fill, np.float32), name)


@dataclass(frozen=True, slots=True)
class CategoryEncoder:
    """Text to codes per column: 0 … c-1 for the categories of training, c for all others. Missing is the empty text."""

    categories: tuple[tuple[str, ...], ...]

    @classmethod
    def fit(cls, x: Array) -> "CategoryEncoder":
        """The most frequent values of each column of `x`, str [N, m]."""
        columns = []
        for column in x.T:
            counts = Counter(column.tolist())
            ranked = sorted(counts, key=lambda value: (-counts[value], value))
            columns.append(tuple(ranked[:MAX_CATEGORIES]))
        return cls(tuple(columns))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes per column, the one for unseen values included."""
        return tuple(len(known) + 1 for known in self.categories)

    def codes(self, x: Array) -> npt.NDArray[np.int64]:
        """Str [N, m] to codes [N, m]."""
        result = np.empty(x.shape, np.int64)
        for j, known in enumerate(self.categories):
            code = {value: index for index, value in enumerate(known)}
            result[:, j] = [code.get(value, len(known)) for value in x[:, j].tolist()]
        return result

    def to_nodes(self, graph: Graph, name: str, tables: list[Array]) -> str:
        """Nodes that replace each text by `tables[column][code]`: [N, m] of the tables' dtype."""
        return self.look_up(graph, name, tables)[0]

    def look_up(self, graph: Graph, name: str, *lookups: list[Array]) -> list[str]:
        """The same for each `tables` of `lookups`.

        All columns share one dictionary, so that three nodes serve any number of columns.
        """
        words = sorted({value for known in self.categories for value in known})
        index = {word: i for i, word in enumerate(words)}
        width = len(words) + 1
        word = graph.add(
            "LabelEncoder", name, domain=ML, keys_strings=words, values_int64s=list(range(len(words))),
            default_int64=len(words),
        )  # fmt: skip
        cell = graph.add("Add", word, graph.constant(np.arange(len(self.categories)) * width, np.int64))
        found = []
        for tables in lookups:
            flat = np.empty((len(tables), width), tables[0].dtype)
            for row, known, table in zip(flat, self.categories, tables, strict=True):
                row[:] = table[-1]
                row[[index[value] for value in known]] = table[:-1]
            found.append(graph.add("Gather", graph.constant(flat.ravel(), flat.dtype), cell, axis=0))
        return found


@dataclass(frozen=True, slots=True)
class TreeEncoder:
    """One column a feature: numbers as they are, categories by how the target goes with them, and some one by one.

    `shown` are the (column, code) of the categories that have a feature of their own, 1 in their rows and 0 in others;
    then come the `values` of numbers, and `pairs` last.
    """

    numeric: NumericEncoder | None
    categories: CategoryEncoder | None
    tables: tuple[npt.NDArray[np.float32], ...] = ()
    shown: tuple[tuple[int, int], ...] = ()
    values: Values | None = None
    pairs: Pairs | None = None

    @classmethod
    def learn(
        cls, data: LearningData, *, keep_missing: bool, one_hot: int = 0
    ) -> tuple["TreeEncoder", npt.NDArray[np.float32]]:
        """The encoder and the features of the training rows, FP32 [N, features].

        Columns of three to `one_hot` categories have them shown one by one.
        """
        inputs = data.train.inputs
        numeric = NumericEncoder.fit(data, keep_missing=keep_missing) if "numeric" in inputs else None
        parts = [] if numeric is None else [numeric.transform(inputs["numeric"])]
        if "categorical" not in inputs:
            return cls(numeric, None), parts[0]
        categories = CategoryEncoder.fit(inputs["categorical"])
        codes = categories.codes(inputs["categorical"])
        targets, folds = columns_of(data.train.y, data.n_classes), folds_of(data)
        learnt = [target_means(codes[:, j], size, targets, folds) for j, size in enumerate(categories.sizes)]
        parts.append(np.stack([values for _, values in learnt], axis=1))
        shown = [
            (column, code)
            for column, known in enumerate(categories.categories)
            for code in range(len(known))
            if 2 < len(known) <= one_hot  # noqa: PLR2004 - two are told apart by one feature
        ]
        encoder = cls(numeric, categories, tuple(table for table, _ in learnt), tuple(shown))
        parts += encoder._one_by_one(codes)
        return encoder, np.concatenate(parts, axis=1)

    def with_values(
        self, most: int, data: LearningData, x: npt.NDArray[np.float32]
    ) -> tuple["TreeEncoder", npt.NDArray[np.float32]]:
        """With features for the values of numeric columns of at most so many; and `x`, the training rows, with them."""
        numbers = x[:, : len(self.numeric.fill)] if self.numeric is not None else x[:, :0]
        values, learnt = Values.learn(numbers, columns_of(data.train.y, data.n_classes), most, folds_of(data))
        return (self, x) if values is None else (replace(self, values=values), np.concatenate([x, learnt], axis=1))

    def with_pairs(
        self, columns: npt.NDArray[np.int64], x: npt.NDArray[np.float32]
    ) -> tuple["TreeEncoder", npt.NDArray[np.float32]]:
        """With features for these pairs of numeric columns, [pairs, 2]; and `x`, the training rows, with them."""
        numbers = x[:, : len(self.numeric.fill)] if self.numeric is not None else x[:, :0]
        pairs = Pairs.of(columns, numbers)
        return replace(self, pairs=pairs), np.concatenate([x, pairs.transform(numbers)], axis=1)

    def transform(self, inputs: Inputs) -> npt.NDArray[np.float32]:
        """FP32 [N, features], of rows that were not learnt from."""
        parts = []
        if self.numeric is not None:
            parts.append(self.numeric.transform(inputs["numeric"]))
        if self.categories is not None:
            codes = self.categories.codes(inputs["categorical"])
            parts.append(np.stack([table[codes[:, j]] for j, table in enumerate(self.tables)], axis=1))
            parts += self._one_by_one(codes)
        if self.values is not None:
            parts.append(self.values.transform(parts[0]))
        if self.pairs is not None:
            parts.append(self.pairs.transform(parts[0]))
        return np.concatenate(parts, axis=1)

    def _one_by_one(self, codes: npt.NDArray[np.int64]) -> list[npt.NDArray[np.float32]]:
        if not self.shown:
            return []
        columns, wanted = np.asarray(self.shown).T
        return [(codes[:, columns] == wanted).astype(np.float32)]

    def to_nodes(self, graph: Graph) -> str:
        """The same as nodes over the inputs `numeric` and `categorical`."""
        parts = []
        if self.numeric is not None:
            parts.append(self.numeric.to_nodes(graph, "numeric"))
        if self.categories is not None:
            parts += self._categories_to_nodes(graph, self.categories)
        if self.values is not None:
            parts.append(self.values.to_nodes(graph, parts[0]))
        if self.pairs is not None:
            parts.append(self.pairs.to_nodes(graph, parts[0]))
        return parts[0] if len(parts) == 1 else graph.add("Concat", *parts, axis=1)

    def _categories_to_nodes(self, graph: Graph, categories: CategoryEncoder) -> list[str]:
        if not self.shown:
            return [categories.to_nodes(graph, "categorical", list(self.tables))]
        codes = [np.arange(size) for size in categories.sizes]
        values, code = categories.look_up(graph, "categorical", list(self.tables), codes)
        columns, wanted = np.asarray(self.shown).T
        picked = graph.add("Gather", code, graph.constant(columns, np.int64), axis=1)
        return [values, graph.add("Cast", graph.add("Equal", picked, graph.constant(wanted, np.int64)), to=1)]


@dataclass(frozen=True, slots=True)
class DenseEncoder:
    """For linear models and networks: standardised numbers with missing flags, and rows of one category table."""

    numeric: NumericEncoder | None
    mean: npt.NDArray[np.float32]
    inverse_scale: npt.NDArray[np.float32]
    flagged: npt.NDArray[np.int64]  # numeric columns that have gaps in training
    categories: CategoryEncoder | None

    @classmethod
    def fit(cls, data: LearningData) -> "DenseEncoder":
        """Learn fills, means, spreads and categories from training rows."""
        inputs = data.train.inputs
        categories = CategoryEncoder.fit(inputs["categorical"]) if "categorical" in inputs else None
        if "numeric" not in inputs:
            return cls(None, np.zeros(0, np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), categories)
        numeric = NumericEncoder.fit(data, keep_missing=False)
        x = numeric.transform(inputs["numeric"]).astype(np.float64)
        spread = x.std(axis=0)
        spread[spread <= np.maximum(_TINY, _CONSTANT * np.abs(x).max(axis=0))] = 1.0
        flagged = np.flatnonzero(np.isnan(inputs["numeric"]).any(axis=0))
        mean = x.mean(axis=0).astype(np.float32)
        return cls(numeric, mean, (1 / spread).astype(np.float32), flagged.astype(np.int64), categories)

    @property
    def width(self) -> int:
        """Columns of the dense part."""
        return len(self.mean) + len(self.flagged)

    @property
    def table_rows(self) -> int:
        """Rows of the category table, one per column and code."""
        return sum(self.categories.sizes) if self.categories else 0

    @property
    def columns(self) -> int:
        """Category columns."""
        return len(self.categories.categories) if self.categories else 0

    def unseen_rows(self) -> npt.NDArray[np.int64]:
        """The table row that stands for unseen values, per category column."""
        sizes = self.categories.sizes if self.categories else ()
        return np.cumsum(np.asarray(sizes, np.int64)) - 1

    def transform(self, inputs: Inputs) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Dense FP32 [N, width] and table rows int64 [N, columns]; either may have no columns."""
        count = rows_of(inputs)
        dense, rows = np.zeros((count, 0), np.float32), np.zeros((count, 0), np.int64)
        if self.numeric is not None:
            x = inputs["numeric"]
            scaled = (self.numeric.transform(x) - self.mean) * self.inverse_scale
            dense = np.concatenate([scaled, np.isnan(x[:, self.flagged]).astype(np.float32)], axis=1)
        if self.categories is not None:
            rows = self.categories.codes(inputs["categorical"]) + self._offsets()
        return dense, rows

    def to_nodes(self, graph: Graph) -> tuple[str | None, str | None]:
        """Names of the dense part and of the table rows; None where there is none."""
        dense = rows = None
        if self.numeric is not None:
            filled = self.numeric.to_nodes(graph, "numeric")
            centred = graph.add("Sub", filled, graph.constant(self.mean, np.float32))
            dense = graph.add("Mul", centred, graph.constant(self.inverse_scale, np.float32))
            if len(self.flagged):
                checked = graph.add("Gather", "numeric", graph.constant(self.flagged, np.int64), axis=1)
                flags = graph.add("Cast", graph.add("IsNaN", checked), to=1)
                dense = graph.add("Concat", dense, flags, axis=1)
        if self.categories is not None:
            starts = self._offsets().tolist()
            tables = [
                np.arange(a, a + size, dtype=np.int64) for a, size in zip(starts, self.categories.sizes, strict=True)
            ]
            rows = self.categories.to_nodes(graph, "categorical", list(tables))
        return dense, rows

    def _offsets(self) -> npt.NDArray[np.int64]:
        sizes = self.categories.sizes if self.categories else ()
        return np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
