"""Logistic regression, ordered or not, and ridge on standardised numbers and one-hot categories (scikit-learn)."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import scipy.sparse as sp  # type: ignore[import-untyped]  # no stubs
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import ElasticNet, LogisticRegression, Ridge

from workers.context import JobContext, Stopped
from workers.export.graph import Graph
from workers.families.answers import answering_model, answers_of
from workers.families.encoding import DenseEncoder
from workers.families.evidence import Evidence, of_classes, of_values, small_enough, together
from workers.families.ordinal import Cumulative, solve
from workers.learning import Array, Inputs, LearningData

_NEVER = -1e4  # a logit whose probability is 0 in float32


class Linear:
    """The family."""

    devices = ("cpu",)

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = params

    def fit(self, data: LearningData, job: JobContext) -> "FittedLinear":
        """Solve on training rows; validation rows are not used.

        One call of a solver, without a checkpoint: a run that was killed starts over.
        """
        encoder = DenseEncoder.fit(data)
        x = _design(encoder, data.train.inputs)
        if data.signature.ordinal:
            return self._ordered(data, encoder, x)
        if data.task == "multilabel":
            return self._several(data, encoder, x, job)
        estimator = self._estimator(data, len(data.train))
        _fit(estimator, x, data.train.y, data.row_weights(data.train.y), job)
        weights, bias = np.atleast_2d(estimator.coef_).T, np.atleast_1d(estimator.intercept_)
        if data.task == "classification" and len(estimator.classes_) < data.n_classes:
            weights, bias = _all_classes(weights, bias, estimator.classes_, data.n_classes)
        solved = int(np.max(estimator.n_iter_)) if estimator.n_iter_ is not None else 1
        return FittedLinear(data, encoder, weights.astype(np.float32), bias.astype(np.float32), solved, self.params)

    def _several(self, data: LearningData, encoder: DenseEncoder, x: sp.csr_matrix, job: JobContext) -> "FittedLinear":
        """A regression for each label. One that no row has, or each, is always or never told."""
        weights, bias = np.zeros((x.shape[1], data.n_classes)), np.full(data.n_classes, _NEVER)
        iterations = 0
        for label, there in enumerate(data.train.y.T):
            if there.min() == there.max():
                bias[label] = -_NEVER if there.max() else _NEVER
                continue
            estimator = self._estimator(data, len(data.train))
            _fit(estimator, x, there, None, job)
            weights[:, label], bias[label] = estimator.coef_[0], estimator.intercept_[0]
            iterations = max(iterations, int(estimator.n_iter_[0]))
            if job.should_stop():
                raise Stopped
        return FittedLinear(data, encoder, weights.astype(np.float32), bias.astype(np.float32), iterations, self.params)

    def _ordered(self, data: LearningData, encoder: DenseEncoder, x: sp.csr_matrix) -> "FittedLinear":
        """Of classes that have an order: one score, and thresholds between them."""
        weights, cumulative, iterations = solve(
            x, data.train.y, data.n_classes, data.row_weights(data.train.y), self.params["regularization"],
            self.params["max_iter"],
        )  # fmt: skip
        return FittedLinear(
            data, encoder, weights.astype(np.float32), np.zeros(1, np.float32), iterations, self.params, cumulative
        )

    def _estimator(self, data: LearningData, rows: int) -> Any:  # noqa: ANN401 - one of scikit-learn's
        p = self.params
        l1_ratio, seed = p["l1_ratio"], data.training.seed
        if data.task == "regression" and l1_ratio:  # which divides the squared error by twice the rows, Ridge does not
            alpha = p["regularization"] / rows
            return ElasticNet(alpha, l1_ratio=l1_ratio, max_iter=p["max_iter"], random_state=seed)
        if data.task == "regression":
            return Ridge(alpha=p["regularization"])
        solver = "saga" if l1_ratio else "lbfgs"
        return LogisticRegression(
            C=1 / p["regularization"], l1_ratio=l1_ratio, solver=solver, max_iter=p["max_iter"], random_state=seed
        )


def _fit(estimator: Any, x: sp.csr_matrix, y: Array, weights: Array | None, job: JobContext) -> None:  # noqa: ANN401 - one of scikit-learn's
    """Solve, and tell what the solver warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        if weights is None:
            estimator.fit(x, y)
        else:
            estimator.fit(x, y, sample_weight=weights)
    for warning in caught:
        job.log(f"linear: {str(warning.message).splitlines()[0]}", level="warning")


@dataclass(frozen=True, slots=True)
class FittedLinear:
    """Weights over the dense columns, then over the rows of the category table: FP32 [columns, outputs]."""

    data: LearningData
    encoder: DenseEncoder
    weights: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    iterations: int
    params: Mapping[str, Any]
    cumulative: Cumulative | None = None

    def predict(self, inputs: Inputs) -> Array:
        """Probabilities [N, K] or values [N]."""
        scores = _design(self.encoder, inputs) @ self.weights.astype(np.float64) + self.bias
        return answers_of(self.data, scores) if self.cumulative is None else self.cumulative.probabilities(scores)

    def to_onnx(self) -> onnx.ModelProto:
        """A matrix product for numbers and a sum of table rows for categories."""
        graph = Graph()
        dense, rows = self.encoder.to_nodes(graph)
        score = graph.constant(self.bias, np.float32)
        if dense is not None:
            product = graph.add("MatMul", dense, graph.constant(self.weights[: self.encoder.width], np.float32))
            score = graph.add("Add", product, score)
        if rows is not None:
            table = self.weights[self.encoder.width :].copy()
            picked = graph.add("Gather", graph.constant(table, np.float32), rows, axis=0)
            total = graph.add("ReduceSum", picked, graph.constant([1], np.int64), keepdims=0)
            score = graph.add("Add", total, score)
        if self.cumulative is None:
            return answering_model(graph, score, self.data, self.weights.shape[1])
        self.cumulative.to_nodes(graph, score)
        return graph.model(self.data.signature.inputs, self.data.signature.outputs)

    def facts(self) -> dict[str, Any]:
        """Solver iterations and number of weights."""
        return {"iterations": self.iterations, "weights": int(self.weights.size)}

    def evidence(self) -> Evidence | None:
        """Conditional, at the penalised weights.

        None with class weights, which make it no likelihood, of ordered classes, and of more than can be counted soon.
        """
        data, train = self.data, self.data.train
        x, outputs = _design(self.encoder, train.inputs), self.weights.shape[1]
        many = data.task == "multilabel"  # a model for each label
        size = (len(train), x.shape[1] + 1, outputs) if many else (len(train), (x.shape[1] + 1) * outputs)
        if data.class_weights is not None or self.cumulative is not None or not small_enough(*size):
            return None
        answers, weights = self.predict(train.inputs), self.weights.astype(np.float64)
        penalty = self.params["regularization"], self.params["l1_ratio"]
        if data.task == "regression":  # in the target's own unit
            residuals = data.standard.restore(train.y) - answers
            return of_values(x, residuals, weights[:, 0] * data.standard.scale, *penalty)
        if many:
            each = zip(answers.T, train.y.T.astype(np.int64), weights.T, strict=True)
            return together([of_classes(x, np.stack([1 - p, p], axis=1), y, w[:, None], *penalty) for p, y, w in each])
        return of_classes(x, answers, train.y, weights, *penalty)


def _all_classes(weights: Array, bias: Array, known: Array, n_classes: int) -> tuple[Array, Array]:
    """Columns for every class: one without a training row has probability 0."""
    if weights.shape[1] == 1:  # two known classes share one column: their logits are 0 and the score
        weights = np.concatenate([np.zeros_like(weights), weights], axis=1)
        bias = np.concatenate([np.zeros_like(bias), bias])
    full, offsets = np.zeros((len(weights), n_classes)), np.full(n_classes, _NEVER)
    full[:, known], offsets[known] = weights, bias
    return full, offsets


def _design(encoder: DenseEncoder, inputs: Inputs) -> sp.csr_matrix:
    """The sparse design matrix; unseen categories are all zeros."""
    dense, rows = encoder.transform(inputs)
    if not rows.shape[1]:
        return sp.csr_matrix(dense.astype(np.float64))
    n, m = rows.shape
    seen = ~np.isin(rows, encoder.unseen_rows())
    where = (np.repeat(np.arange(n), m)[seen.ravel()], rows.ravel()[seen.ravel()])
    one_hot = sp.csr_matrix((np.ones(int(seen.sum())), where), shape=(n, encoder.table_rows))
    return sp.csr_matrix(sp.hstack([sp.csr_matrix(dense.astype(np.float64)), one_hot]))
