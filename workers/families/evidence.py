"""What a fitted likelihood says of its model: AIC, BIC, and the marginal likelihood where it has a closed form.

Logarithms are natural, so that everything is in nats, and of training rows.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp  # type: ignore[import-untyped]  # no stubs

from workers.learning import Array

_Floats = npt.NDArray[np.float64]
_CHUNK = 4096  # rows that are dense at a time
_COLUMNS = 1000  # of the information matrix, whose inverse takes their cube
_WORK = 5e10  # products; a few seconds


@dataclass(frozen=True, slots=True)
class Evidence:
    """Of a model that states how likely its training rows are.

    `likelihood` is `conditional`, of targets given the columns, or `joint`, of both. `parameters` are effective ones: a
    penalty makes them fewer than there are numbers.
    """

    likelihood: Literal["conditional", "joint"]
    log_likelihood: float
    rows: int
    parameters: float
    log_marginal_likelihood: float | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, with `aic` and `bic`, of which lower ones are better."""
        twice = -2 * self.log_likelihood
        criteria = {"aic": twice + 2 * self.parameters, "bic": twice + float(np.log(self.rows)) * self.parameters}
        return asdict(self) | criteria


def small_enough(rows: int, numbers: int, models: int = 1) -> bool:
    """Whether so many weights of each model over so many rows are counted in seconds."""
    return numbers <= _COLUMNS and float(rows) * numbers**2 * models <= _WORK


def of_values(x: sp.csr_matrix, residuals: Array, weights: Array, strength: float, l1_ratio: float) -> Evidence | None:
    """Of a linear model with normal noise, at its penalised weights, the variance of the noise by maximum likelihood.

    Effective parameters are the trace of the hat matrix over the columns whose weight is not zero (Zou, Hastie and
    Tibshirani 2007), the intercept, and the variance. Ridge is the mode of weights with the prior
    N(0, variance / strength); then there is a marginal likelihood, the intercept at its estimate and the variance at
    the value that makes it largest, as scikit-learn's BayesianRidge finds it.

    Args:
        x: the design [N, columns], without an intercept.
        residuals: [N].
        weights: [columns].
        strength: of the penalty strength · (l1_ratio |w|₁ + (1 - l1_ratio) |w|² / 2) on half the squared error; of
            ridge strength · |w|² on the whole of it, which is the same.
        l1_ratio: 0 for ridge.

    Returns:
        None where there is no noise: targets that are all the same, or met exactly, are infinitely likely.
    """
    rows, squares = len(residuals), float(residuals @ residuals)
    if squares <= rows * np.finfo(np.float32).tiny:
        return None
    there = np.flatnonzero(weights) if l1_ratio else np.arange(x.shape[1])
    active = x[:, there]
    mean = np.asarray(active.mean(axis=0)).ravel()
    spread = np.linalg.eigvalsh(_gram(active, np.ones(rows)) - rows * np.outer(mean, mean)).clip(0)
    second = strength * (1 - l1_ratio)
    kept = spread[spread > 1e-10 * max(1.0, spread.max(initial=0.0))]
    parameters = float((kept / (kept + second)).sum()) + 2
    likelihood = -rows / 2 * (np.log(2 * np.pi * squares / rows) + 1)
    marginal = None
    if not l1_ratio:
        variance = (squares + strength * float(weights @ weights)) / rows
        determinant = float(np.log1p(kept / strength).sum())
        marginal = float(-rows / 2 * (np.log(2 * np.pi * variance) + 1) - determinant / 2)
    return Evidence("conditional", float(likelihood), rows, parameters, marginal)


def of_classes(
    x: sp.csr_matrix, probabilities: Array, y: Array, weights: Array, strength: float, l1_ratio: float
) -> Evidence:
    """Of a logistic regression, at its penalised weights.

    Effective parameters are the trace of (I + P)⁻¹ I (Gray 1992): I the Fisher information of the weights that are not
    zero and of the intercepts, P the second derivatives of the penalty, which spares intercepts.

    Args:
        x: the design [N, columns], without an intercept.
        probabilities: of each class [N, K].
        y: class indices [N].
        weights: [columns, K], or [columns, 1] of the second of two classes.
        strength: of the penalty strength · (l1_ratio |w|₁ + (1 - l1_ratio) |w|² / 2) on the negative log-likelihood.
        l1_ratio: 0 for ridge.
    """
    rows, outputs = len(y), weights.shape[1]
    told = probabilities[:, 1:] if outputs == 1 else probabilities
    design = sp.csr_matrix(sp.hstack([x, np.ones((rows, 1))]))
    width = design.shape[1]
    information = np.zeros((outputs * width, outputs * width))
    for i in range(outputs):
        for j in range(i, outputs):
            block = _gram(design, told[:, i] * ((i == j) - told[:, j]))
            information[i * width : (i + 1) * width, j * width : (j + 1) * width] = block
            information[j * width : (j + 1) * width, i * width : (i + 1) * width] = block
    penalty = np.full((outputs, width), strength * (1 - l1_ratio))
    penalty[:, -1] = 0
    free = np.ones((outputs, width), bool)
    if l1_ratio:
        free[:, :-1] = weights.T != 0
    there = np.flatnonzero(free)
    information = information[np.ix_(there, there)]
    inverse = np.linalg.pinv(information + np.diag(penalty.ravel()[there]), rcond=1e-10, hermitian=True)
    likelihood = np.log(probabilities[np.arange(rows), y].clip(1e-300)).sum()
    return Evidence("conditional", float(likelihood), rows, float((inverse * information).sum()))


def together(parts: list[Evidence]) -> Evidence:
    """Of independent models of the same rows."""
    likelihood, parameters = sum(part.log_likelihood for part in parts), sum(part.parameters for part in parts)
    return Evidence(parts[0].likelihood, likelihood, parts[0].rows, parameters)


def _gram(x: sp.csr_matrix, weights: _Floats) -> _Floats:
    """Xᵀ diag(weights) X, [columns, columns]."""
    total = np.zeros((x.shape[1], x.shape[1]))
    for start in range(0, x.shape[0], _CHUNK):
        some = x[start : start + _CHUNK].toarray()
        total += (some.T * weights[start : start + _CHUNK]) @ some
    return total
