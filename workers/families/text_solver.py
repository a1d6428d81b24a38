"""Weights of n-grams: of a support vector machine and of naive Bayes together, or of ridge (scikit-learn).

Columns are scaled by how unevenly the classes hold them before the machine is solved (Wang and Manning 2012, "Baselines
and Bigrams"). What naive Bayes answers is added; how much, and what the sum is divided by to be logits, is what gives
left-out training rows the best log loss. All of it is linear, so what is served is one table of weights.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp  # type: ignore[import-untyped]  # no stubs
from scipy.optimize import minimize  # type: ignore[import-untyped]  # no stubs
from scipy.special import log_softmax  # type: ignore[import-untyped]  # no stubs
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Ridge
from sklearn.naive_bayes import ComplementNB
from sklearn.svm import LinearSVC

from app.core.signature import Task
from workers.context import JobContext, Stopped
from workers.families.target_means import split_folds
from workers.learning import Array, LearningData

_MACHINE = (30.0, 10.0, 3.0, 1.0)  # strengths that are tried, the strongest first
_RIDGE = (10.0, 3.0, 1.0, 0.3, 0.1)
_USUAL = 3.0
_SMOOTHING = 0.3  # rows of every n-gram that naive Bayes imagines
_SHARES = np.array([3.0, 0.3])  # of the machine and of naive Bayes, where there are too few rows to find them
_FOLDS = 3
_FOLD_VALUES = 20_000_000  # of the matrix; above, one fold says enough
_NEVER = -1e4  # a logit whose probability is 0 in float32
Weights = tuple[Array, Array]


@dataclass(frozen=True, slots=True)
class Solution:
    """FP64 weights [columns, outputs] and a bias [outputs]: logits, of the second class if there are two."""

    weights: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64]
    about: dict[str, Any]


class Solver:
    """Solves for one data set. `strength` is of L2; None: chosen by left-out rows.

    `task` and `classes` are those of the data unless given.
    """

    def __init__(
        self, data: LearningData, job: JobContext, strength: float | None, task: Task | None = None, classes: int = 0
    ) -> None:
        self.data, self.seed = data, data.training.seed
        self.task, self.n_classes = task or data.task, classes or data.n_classes
        self.job, self.strength, self.class_weights = job, strength, data.class_weights
        self.done = 0

    def solve(self, x: sp.csr_matrix, y: Array) -> Solution:
        """From rows [N, columns] and their targets. Stopped when the job was asked to stop."""
        if self.task == "multilabel":
            return self._several(x, y)
        if self.task == "regression":
            strength = self.strength or self._best_ridge(x, y)
            weights, bias = self._ridge(x, y, strength)
            return Solution(weights, bias, {"regularization": strength})
        strength, shares = self._best_machine(x, y)
        (machine, offsets), bayes = self._machine(x, y, strength), self._bayes(x, y)
        weights, bias = shares[0] * machine + shares[1] * bayes, shares[0] * offsets
        missing = np.setdiff1d(np.arange(self.n_classes), y)
        bias[missing] = _NEVER
        if self.n_classes == 2:  # noqa: PLR2004 - two classes need one column
            weights, bias = weights[:, [1]] - weights[:, [0]], bias[[1]] - bias[[0]]
        shown = {"machine": round(float(shares[0]), 4), "naive_bayes": round(float(shares[1]), 4)}
        return Solution(weights, bias, {"regularization": strength, "shares": shown})

    def _several(self, x: sp.csr_matrix, y: Array) -> Solution:
        """Each label by itself, as the second of two classes. One that no row has, or each, is always or never told."""
        weights, bias, strengths = np.zeros((x.shape[1], y.shape[1])), np.full(y.shape[1], _NEVER), []
        for label, there in enumerate(y.T.astype(np.int64)):
            if there.min() == there.max():
                bias[label] = -_NEVER if there.max() else _NEVER
                continue
            one = Solver(self.data, self.job, self.strength, "classification", 2)
            found = one.solve(x, there)
            weights[:, [label]], bias[[label]] = found.weights, found.bias
            strengths.append(found.about["regularization"])
        return Solution(weights, bias, {"regularization": strengths})

    def _machine(self, x: sp.csr_matrix, y: Array, strength: float) -> Weights:
        """Weights [columns, classes] and offsets [classes], each class against the others."""
        self._tell()
        scale = _unevenness(x, y)
        estimator = LinearSVC(C=1 / strength, random_state=self.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # near enough: left-out rows judge what it gives
            estimator.fit(x @ sp.diags(scale), y, self._weights(y))
        weights, offsets = estimator.coef_.T * scale[:, None], np.atleast_1d(estimator.intercept_)
        if weights.shape[1] == 1:  # of two known classes, half for each
            weights, offsets = np.hstack([-weights, weights]) / 2, np.hstack([-offsets, offsets]) / 2
        full, known = np.zeros((len(weights), self.n_classes)), estimator.classes_
        full[:, known] = weights
        bias = np.full(self.n_classes, _NEVER)
        bias[known] = offsets
        return full, bias

    def _bayes(self, x: sp.csr_matrix, y: Array) -> Array:
        """Weights [columns, classes]."""
        estimator = ComplementNB(alpha=_SMOOTHING).fit(x, y, self._weights(y))
        weights = np.zeros((x.shape[1], self.n_classes))
        own = estimator.feature_log_prob_.T
        weights[:, estimator.classes_] = own - own.mean(axis=1, keepdims=True)  # to have no digits in common
        return weights

    def _ridge(self, x: sp.csr_matrix, y: Array, strength: float) -> Weights:
        self._tell()
        estimator = Ridge(alpha=strength).fit(x, y)
        return np.atleast_2d(estimator.coef_).T, np.atleast_1d(estimator.intercept_)

    def _best_machine(self, x: sp.csr_matrix, y: Array) -> tuple[float, Array]:
        """The strength, and the shares of both models, that give left-out rows the best log loss."""
        parts = self._parts(x, y)
        # Of a class that is not in the rows to solve on nothing can be known.
        parts = [(kept, held[np.isin(y[held], y[kept])]) for kept, held in parts]
        best = (np.inf, self.strength or _USUAL, _SHARES)
        if any(len(np.unique(y[kept])) < 2 or not len(held) for kept, held in parts):  # noqa: PLR2004 - one class
            return best[1], best[2]
        target = y[np.concatenate([held for _, held in parts])]
        bayes = np.concatenate([x[held] @ self._bayes(x[kept], y[kept]) for kept, held in parts])
        for strength in (self.strength,) if self.strength else _MACHINE:
            solved = [(held, *self._machine(x[kept], y[kept], strength)) for kept, held in parts]
            machine = np.concatenate([x[held] @ weights + offsets for held, weights, offsets in solved])
            found = _weigh(machine, bayes, target, self._weights(target))
            self.job.metric("cross_validation_loss", self.done, found[0])
            if found[0] > best[0]:
                break
            best = (found[0], strength, found[1])
        return best[1], best[2]

    def _best_ridge(self, x: sp.csr_matrix, y: Array) -> float:
        best = (np.inf, _USUAL)
        for strength in _RIDGE:
            errors = []
            for kept, held in self._parts(x, y):
                weights, bias = self._ridge(x[kept], y[kept], strength)
                errors.append((x[held] @ weights + bias)[:, 0] - y[held])
            loss = float(np.mean(np.square(np.concatenate(errors))))
            if loss > best[0]:
                break
            best = (loss, strength)
        return best[1]

    def _parts(self, x: sp.csr_matrix, y: Array) -> list[tuple[Array, Array]]:
        """Rows to solve on and rows to judge by: by whole groups where rows are split so, else alike in classes."""
        fold = split_folds(self.data, _FOLDS)
        if fold is None or len(fold) != len(y):
            fold = self._random_folds(y)
        parts = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in np.unique(fold)]
        return parts[:1] if x.nnz > _FOLD_VALUES else parts

    def _random_folds(self, y: Array) -> Array:
        """Of each row, [N]; every fold has the same share of a class."""
        order = np.random.default_rng(self.seed).permutation(len(y))
        if self.task == "classification":
            order = order[np.argsort(y[order], kind="stable")]
        fold = np.empty(len(y), np.int64)
        fold[order] = np.arange(len(y)) % _FOLDS
        return fold

    def _weights(self, y: Array) -> Array | None:
        return None if self.class_weights is None else self.class_weights[y]

    def _tell(self) -> None:
        if self.job.should_stop():
            raise Stopped
        self.done += 1
        self.job.progress(0.25 + 0.5 * self.done / (_FOLDS * len(_RIDGE) + 1), f"solving, {self.done}")


def _unevenness(x: sp.csr_matrix, y: Array) -> npt.NDArray[np.float64]:
    """For each column the largest log ratio of its shares of the rows of a class and of the other classes."""
    held = x.astype(bool).astype(np.float64)
    total = np.asarray(held.sum(axis=0)).ravel()
    largest = np.zeros(x.shape[1])
    for label in np.unique(y):
        own = np.asarray(held[y == label].sum(axis=0)).ravel()
        inside, outside = own + 1, total - own + 1
        ratio = np.log(inside / inside.sum()) - np.log(outside / outside.sum())
        largest = np.maximum(largest, np.abs(ratio))
    return largest


def _weigh(machine: Array, bayes: Array, y: Array, weights: Array | None) -> tuple[float, Array]:
    """The best log loss of `a * machine + b * bayes` [N, classes] as logits, and (a, b)."""
    rows = np.arange(len(y))

    def loss(logs: Array) -> float:
        a, b = np.exp(logs)
        return -float(np.average(log_softmax(a * machine + b * bayes, axis=1)[rows, y], weights=weights))

    found = minimize(loss, np.log(_SHARES), method="Nelder-Mead", options={"maxiter": 200})
    return float(found.fun), np.exp(found.x)
