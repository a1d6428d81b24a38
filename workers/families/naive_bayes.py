"""Naive Bayes on numbers and categories (scikit-learn): all columns are taken to be independent within a class."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from scipy.special import softmax  # type: ignore[import-untyped]  # no stubs
from sklearn.naive_bayes import CategoricalNB, GaussianNB

from workers.context import JobContext
from workers.export.graph import Graph
from workers.families.encoding import DenseEncoder
from workers.families.evidence import Evidence
from workers.families.per_label import FittedLabels, fit_labels
from workers.learning import Array, Inputs, LearningData

_NEVER = -1e300  # a log probability that is below any density of a row, however far out


class NaiveBayes:
    """The family."""

    devices = ("cpu",)

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = params

    def fit(self, data: LearningData, job: JobContext) -> "FittedNaiveBayes | FittedLabels":
        """Count and average the training rows; validation rows are not used."""
        if data.task == "multilabel":
            return fit_labels(self.fit, data, job)
        encoder = DenseEncoder.fit(data)
        dense, rows = encoder.transform(data.train.inputs)
        y, classes, width = data.train.y, data.n_classes, encoder.width
        known = np.unique(y)
        prior = np.full(classes, _NEVER)
        # A class is as dense wherever it counts more, so weights change how frequent it is taken to be, and no more.
        counts = np.bincount(y, data.row_weights(data.train.y), classes)
        prior[known] = np.log(counts[known] / counts.sum())
        mean, deviation = np.zeros((classes, width)), np.ones((classes, width))
        spread = True
        if width:
            normal = GaussianNB(var_smoothing=self.params["var_smoothing"]).fit(dense.astype(np.float64), y)
            mean[known], deviation[known] = normal.theta_, np.sqrt(normal.var_)
            spread = not np.isclose(normal.var_, normal.epsilon_, rtol=1e-6, atol=0).any()
        table = np.zeros((encoder.table_rows, classes))
        if encoder.columns:
            table[:, known] = _category_table(encoder, rows, y, self.params["alpha"])
        constant = prior - np.log(deviation).sum(axis=1)
        return FittedNaiveBayes(data, encoder, constant, mean, 1 / deviation, table, spread)


def _category_table(encoder: DenseEncoder, rows: Array, y: Array, alpha: float) -> npt.NDArray[np.float64]:
    """Log probability of each row of the category table by class: [rows, known classes]; of unseen values 0.

    Zero says nothing for any class, as if the column were not there.
    """
    last = encoder.unseen_rows()
    sizes = np.diff(np.concatenate([[-1], last]))
    codes = rows - (last - sizes + 1)
    counted = CategoricalNB(alpha=alpha, min_categories=sizes).fit(codes, y)
    table = np.concatenate([log.T for log in counted.feature_log_prob_])
    table[last] = 0.0
    return np.asarray(table, np.float64)


@dataclass(frozen=True, slots=True)
class FittedNaiveBayes:
    """Log densities by class: means and inverse deviations [K, width], categories [table rows, K], the rest [K]."""

    data: LearningData
    encoder: DenseEncoder
    constant: npt.NDArray[np.float64]
    mean: npt.NDArray[np.float64]
    inverse: npt.NDArray[np.float64]
    table: npt.NDArray[np.float64]
    spread: bool = True  # no number is constant within a class

    def predict(self, inputs: Inputs) -> Array:
        """Probabilities [N, K]."""
        return np.asarray(softmax(self._scores(inputs), axis=1))

    def _scores(self, inputs: Inputs) -> Array:
        """Log densities of row and class [N, K], but for a constant."""
        dense, rows = self.encoder.transform(inputs)
        score = np.tile(self.constant, (len(dense), 1))
        for k, (mean, inverse) in enumerate(zip(self.mean, self.inverse, strict=True)):
            score[:, k] -= (((dense - mean) * inverse) ** 2).sum(axis=1) / 2
        return np.asarray(score + self.table[rows].sum(axis=1))

    def to_onnx(self) -> onnx.ModelProto:
        """In double precision: the scores of a row are large and close to each other."""
        graph, signature = Graph(), self.data.signature
        dense, rows = self.encoder.to_nodes(graph)
        score = graph.constant(self.constant, np.float64)
        if dense is not None:
            column = graph.add(
                "Unsqueeze", graph.add("Cast", dense, to=onnx.TensorProto.DOUBLE), graph.constant([1], np.int64)
            )
            gap = graph.add("Sub", column, graph.constant(self.mean, np.float64))  # [N, K, width]
            scaled = graph.add("Mul", gap, graph.constant(self.inverse * np.sqrt(0.5), np.float64))
            square = graph.add("Mul", scaled, scaled)
            total = graph.add("ReduceSum", square, graph.constant([2], np.int64), keepdims=0)
            score = graph.add("Sub", score, total)
        if rows is not None:
            picked = graph.add("Gather", graph.constant(self.table, np.float64), rows, axis=0)  # [N, columns, K]
            score = graph.add("Add", score, graph.add("ReduceSum", picked, graph.constant([1], np.int64), keepdims=0))
        graph.add("Cast", graph.add("Softmax", score, axis=1), to=onnx.TensorProto.FLOAT, output="probabilities")
        return graph.model(signature.inputs, signature.outputs)

    def facts(self) -> dict[str, Any]:
        """Number of parameters."""
        return {"weights": int(self.mean.size + self.inverse.size + self.table.size + self.constant.size)}

    def evidence(self) -> Evidence | None:
        """Joint, of classes, standardised numbers and categories.

        None where it is no likelihood: with class weights, where a number is constant within a class (its density has
        no bound but the smoothing), and where a column has more categories than are kept.
        """
        train, encoder = self.data.train, self.encoder
        _, rows = encoder.transform(train.inputs)
        if self.data.class_weights is not None or not self.spread or np.isin(rows, encoder.unseen_rows()).any():
            return None
        scores = self._scores(train.inputs)[np.arange(len(train)), train.y]
        classes = len(np.unique(train.y))
        free = 2 * encoder.width + encoder.table_rows - 2 * encoder.columns  # a share follows from the others
        likelihood = scores.sum() - len(train) * encoder.width / 2 * np.log(2 * np.pi)
        return Evidence("joint", float(likelihood), len(train), classes - 1 + classes * free)
