"""How answers of several models become one: weights found greedily, or a linear model over them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar, nnls  # type: ignore[import-untyped]  # no stubs
from scipy.special import softmax  # type: ignore[import-untyped]  # no stubs
from sklearn.linear_model import LogisticRegression

from workers.automl.score import Score, log_likelihood
from workers.export.graph import Graph
from workers.learning import Array

TINY = 1e-6  # of probabilities, before their logarithm
_STEPS = 30  # of the greedy search: weights are multiples of a thirtieth or more
_TEMPERATURES = 0.25, 4.0
_STACK_COLUMNS = 64  # more would be learnt by heart


class Combination(Protocol):
    """A function of the members' answers, and which members it needs."""

    @property
    def weights(self) -> tuple[float, ...]:
        """Of all members; 0 where one is not needed."""

    def apply(self, answers: Sequence[Array]) -> Array:
        """Of the answers [N, K] or [N] of all members; those of weight 0 are not looked at."""

    def to_nodes(self, graph: Graph, answers: Sequence[str], output: str) -> None:
        """The same as nodes; `answers` are the names of those of the members it needs."""


@dataclass(frozen=True, slots=True)
class Weighted:
    """A weighted mean. Of probabilities of classes, sharpened or flattened by a temperature, to be true to the data."""

    weights: tuple[float, ...]
    temperature: float = 1.0

    def apply(self, answers: Sequence[Array]) -> Array:
        """See Combination."""
        total = sum(weight * answer for weight, answer in zip(self.weights, answers, strict=True) if weight)
        mixed = np.asarray(total, np.float64)
        if self.temperature == 1:
            return mixed
        return np.asarray(softmax(_log(mixed) / self.temperature, axis=1))

    def to_nodes(self, graph: Graph, answers: Sequence[str], output: str) -> None:
        """See Combination."""
        used = [weight for weight in self.weights if weight]
        scaled = [
            graph.add("Mul", name, graph.constant([w], np.float32)) for w, name in zip(used, answers, strict=True)
        ]
        if self.temperature == 1:
            graph.add("Sum", *scaled, output=output)
            return
        flat = graph.add("Div", _log_node(graph, graph.add("Sum", *scaled)), _scalar(graph, self.temperature))
        graph.add("Softmax", flat, axis=1, output=output)


@dataclass(frozen=True, slots=True)
class Stacked:
    """A multinomial logistic regression on the logarithms of the members' probabilities."""

    weights: tuple[float, ...]  # 1 or 0
    coefficients: npt.NDArray[np.float64]  # [columns of the members used, K]
    intercept: npt.NDArray[np.float64]  # [K]

    def apply(self, answers: Sequence[Array]) -> Array:
        """See Combination."""
        used = [answer for weight, answer in zip(self.weights, answers, strict=True) if weight]
        return np.asarray(softmax(_columns(used) @ self.coefficients + self.intercept, axis=1))

    def to_nodes(self, graph: Graph, answers: Sequence[str], output: str) -> None:
        """See Combination."""
        logs = _log_node(graph, graph.add("Concat", *answers, axis=1))
        weights = graph.constant(self.coefficients, np.float32)
        graph.add(
            "Softmax", graph.add("Gemm", logs, weights, graph.constant(self.intercept, np.float32)), output=output
        )


def best_single(answers: Sequence[Array], y: Array, score: Score) -> Weighted:
    """The one member with the best score."""
    best = int(np.argmax([score(y, answer) for answer in answers]))
    return Weighted(tuple(float(i == best) for i in range(len(answers))))


def greedy(answers: Sequence[Array], y: Array, score: Score, most: int) -> Weighted:
    """Members added one at a time, repeats allowed, each the one that helps most (Caruana and others 2004).

    What counts is the best moment of that walk, so that it cannot be worse than the best member on these rows.
    """
    counts, total = np.zeros(len(answers), np.int64), np.zeros_like(answers[0], dtype=np.float64)
    best, kept = -np.inf, counts
    for step in range(1, _STEPS + 1):
        full = (counts > 0).sum() >= most
        allowed = [m for m in range(len(answers)) if counts[m] or not full]
        reached = [score(y, (total + answers[m]) / step) for m in allowed]
        chosen = allowed[int(np.argmax(reached))]
        counts[chosen] += 1
        total += answers[chosen]
        if max(reached) > best:
            best, kept = max(reached), counts.copy()
    return Weighted(tuple((kept / kept.sum()).tolist()))


def stack(answers: Sequence[Array], y: Array, used: Sequence[float]) -> Stacked | None:
    """Learnt on the members of weight in `used`; None if that would be too many columns, or a class has no row."""
    columns = _columns([answer for weight, answer in zip(used, answers, strict=True) if weight])
    classes = answers[0].shape[1]
    if columns.shape[1] > _STACK_COLUMNS or len(np.unique(y)) < classes:
        return None
    model = LogisticRegression(C=0.1, max_iter=500).fit(columns, y)
    coefficients, intercept = model.coef_.T, model.intercept_
    if coefficients.shape[1] == 1:  # two classes: the logit of the second
        coefficients = np.concatenate([-coefficients / 2, coefficients / 2], axis=1)
        intercept = np.concatenate([-intercept / 2, intercept / 2])
    return Stacked(tuple(float(weight > 0) for weight in used), coefficients, intercept)


def least_squares(answers: Sequence[Array], y: Array, most: int) -> Weighted | None:
    """Of values: weights of no sign but plus that leave the least squared error, of the heaviest members.

    None if no member has a weight, as where answers go against the targets: a constant 0 is no model.
    """
    matrix = np.stack(answers, axis=1).astype(np.float64)
    heavy = np.argsort(-nnls(matrix, y)[0])[:most]
    weights = np.zeros(len(answers))
    weights[heavy] = nnls(matrix[:, heavy], y)[0]
    return Weighted(tuple(weights.tolist())) if weights.any() else None


def calibrated(mixed: Weighted, answers: Sequence[Array], y: Array) -> Weighted:
    """With the temperature under which the right classes are likeliest (Guo and others 2017)."""
    probabilities = mixed.apply(answers)

    def loss(temperature: float) -> float:
        return -log_likelihood(y, np.asarray(softmax(_log(probabilities) / temperature, axis=1)))

    found = minimize_scalar(loss, bounds=_TEMPERATURES, method="bounded")
    return replace(mixed, temperature=float(found.x))


def _log(probabilities: Array) -> Array:
    return np.log(np.maximum(probabilities, TINY))


def _columns(answers: Sequence[Array]) -> Array:
    return np.concatenate([_log(answer) for answer in answers], axis=1)


def _scalar(graph: Graph, value: float) -> str:
    return graph.constant([value], np.float32)


def _log_node(graph: Graph, probabilities: str) -> str:
    return graph.add("Log", graph.add("Max", probabilities, _scalar(graph, TINY)))
