"""Ordered classes: the cumulative logit model, also called proportional odds (McCullagh 1980).

One score for each row, and thresholds between neighbouring classes: P(class <= k) = sigmoid(threshold k - score).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp  # type: ignore[import-untyped]  # no stubs
from scipy.optimize import minimize  # type: ignore[import-untyped]  # no stubs
from scipy.special import expit, log_expit  # type: ignore[import-untyped]  # no stubs

from workers.export.graph import Graph
from workers.learning import Array

_Floats = npt.NDArray[np.float64]
_LOGS = (-12.0, 6.0)  # of the gaps between thresholds: that of a class without a row would close for ever


@dataclass(frozen=True, slots=True)
class Cumulative:
    """The thresholds, ascending [K - 1]."""

    thresholds: _Floats

    def probabilities(self, scores: Array) -> _Floats:
        """[N, K] from scores [N, 1]."""
        below = expit(self.thresholds - scores)
        ends = np.zeros((len(scores), 1)), np.ones((len(scores), 1))
        return np.asarray(np.diff(np.concatenate([ends[0], below, ends[1]], axis=1), axis=1))

    def to_nodes(self, graph: Graph, score: str) -> None:
        """The same as nodes, from FP32 [N, 1] to the output `probabilities`."""
        gap = graph.add("Sub", graph.constant(self.thresholds, np.float32), score)
        below, count = graph.add("Sigmoid", gap), len(self.thresholds)
        steps = np.eye(count, count + 1) - np.eye(count, count + 1, k=1)
        differences = graph.add("MatMul", below, graph.constant(steps, np.float32))
        last = graph.constant(np.eye(1, count + 1, k=count), np.float32)
        graph.add("Add", differences, last, output="probabilities")


@dataclass(frozen=True, slots=True)
class _Problem:
    """Rows [N, columns], their classes [N] of K, how much each counts [N], and the strength of L2."""

    x: sp.csr_matrix
    y: Array
    classes: int
    weights: _Floats
    strength: float

    def start(self) -> _Floats:
        """No weights, and thresholds that give the classes their shares."""
        shares = np.bincount(self.y, self.weights, self.classes) + 1e-3
        below = np.cumsum(shares)[:-1] / shares.sum()
        thresholds = np.log(below / (1 - below))
        gaps = np.log(np.diff(thresholds)).clip(*_LOGS)
        return np.concatenate([np.zeros(self.x.shape[1]), thresholds[:1], gaps])

    def thresholds(self, parameters: _Floats) -> _Floats:
        """The first one, and each next one a gap further."""
        first, gaps = parameters[self.x.shape[1]], np.exp(parameters[self.x.shape[1] + 1 :])
        return np.asarray(first + np.concatenate([[0.0], np.cumsum(gaps)]))

    def loss(self, parameters: _Floats) -> tuple[float, _Floats]:
        """Penalised negative log likelihood, and its gradient.

        With a the threshold above a row's class minus its score, and b that below, the probability of the class is
        sigmoid(a) sigmoid(-b) (1 - e^(b - a)).
        """
        width = self.x.shape[1]
        slopes, thresholds = parameters[:width], self.thresholds(parameters)
        score, last = self.x @ slopes, self.classes - 1
        above, below = self.y < last, self.y > 0
        upper = np.where(above, thresholds[np.minimum(self.y, last - 1)] - score, np.inf)
        lower = np.where(below, thresholds[np.maximum(self.y, 1) - 1] - score, -np.inf)
        gap = upper - lower  # infinite for the first and the last class
        value = -self.weights @ (log_expit(upper) + log_expit(-lower) + np.log(-np.expm1(-gap)))
        closing = np.exp(-gap) / -np.expm1(-gap)
        by_upper = self.weights * np.where(above, expit(-upper) + closing, 0.0)
        by_lower = -self.weights * np.where(below, expit(lower) + closing, 0.0)
        by_threshold = np.bincount(self.y[above], by_upper[above], last) + np.bincount(
            self.y[below] - 1, by_lower[below], last
        )
        tails = np.cumsum(by_threshold[::-1])[::-1]  # a gap moves all thresholds after it
        gaps = np.exp(parameters[width + 1 :])
        gradient = np.concatenate([-(self.x.T @ (by_upper + by_lower)), tails[:1], tails[1:] * gaps])
        gradient[:width] -= self.strength * slopes
        return float(value + self.strength / 2 * slopes @ slopes), -gradient


def solve(
    x: sp.csr_matrix, y: Array, classes: int, weights: Array | None, strength: float, most: int
) -> tuple[_Floats, Cumulative, int]:
    """Weights [columns, 1], the thresholds, and iterations taken.

    Args:
        x: rows [N, columns].
        y: class indices in their order [N].
        classes: K.
        weights: how much each row counts [N]; None: all alike.
        strength: of L2 on the weights; the thresholds are free.
        most: iterations.
    """
    problem = _Problem(x, y, classes, np.ones(len(y)) if weights is None else weights, strength)
    width = x.shape[1]
    bounds = [(None, None)] * (width + 1) + [_LOGS] * (classes - 2)
    found = minimize(
        problem.loss, problem.start(), jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": most}
    )
    return found.x[:width, None], Cumulative(problem.thresholds(found.x)), int(found.nit)
