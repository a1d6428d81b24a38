"""Steps on several numbers at once: products, powers, projections, selection."""

import warnings
from collections import Counter
from itertools import combinations, combinations_with_replacement
from typing import Any

import numpy as np
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_selection import (
    f_classif,
    f_regression,
    mutual_info_classif,
    mutual_info_regression,
)

from app.core.signature import ColumnType
from app.specs.features import Interact, Pca, Polynomial, Select, Svd
from workers.export.graph import Graph
from workers.features.fitting import Fitting
from workers.features.stage import Stage, doubles
from workers.learning import Array

Made = tuple[list[Stage], dict[str, Any]]
_SCORED_ROWS = 10_000  # mutual information takes its time
_SHOWN = 100


def interact(step: Interact, on: Fitting) -> Made:
    """Products of two numbers; one with a missing value is missing."""
    if step.pairs is not None:
        found = [
            tuple(on.find("numeric", ("pairs", j, k), name) for k, name in enumerate(pair))
            for j, pair in enumerate(step.pairs)
        ]
        columns = tuple(dict.fromkeys(column for pair in found for column in pair))
        factors = [tuple(columns.index(column) for column in pair) for pair in found]
    else:
        columns = on.numbers()
        factors = list(combinations(range(len(columns)), 2))
    return _products(on, columns, factors)


def polynomial(step: Polynomial, on: Fitting) -> Made:
    """All products of two factors up to `degree`, as scikit-learn's PolynomialFeatures."""
    columns = on.numbers()
    factors: list[tuple[int, ...]] = []
    for degree in range(2, step.degree + 1):
        factors += combinations_with_replacement(range(len(columns)), degree)
        on.check_count(len(factors))
    return _products(on, columns, factors)


def _products(on: Fitting, columns: tuple[int, ...], factors: list[tuple[int, ...]]) -> Made:
    if not factors:
        on.refuse("it takes two columns of numbers at least; leave the step out")
    on.check_count(len(factors))
    most, one = max(map(len, factors)), len(columns)  # a column of ones fills up short products
    places = np.asarray([[*product, *[one] * (most - len(product))] for product in factors], np.int64)

    def nodes(graph: Graph, name: str) -> str:
        padded = graph.add(
            "Pad", name, graph.constant([0, 0, 0, 1], np.int64), graph.constant(np.asarray(1.0), np.float64)
        )
        parts = [graph.add("Gather", padded, graph.constant(place, np.int64), axis=1) for place in places.T]
        result = parts[0]
        for part in parts[1:]:
            result = graph.add("Mul", result, part)
        return result

    names = on.names("numeric", columns)
    made: tuple[tuple[str, ColumnType], ...] = tuple((_product(names, product), "number") for product in factors)
    return [Stage("numeric", columns, (), made, "numeric", nodes)], {"added": len(made)}


def _product(names: list[str], factors: tuple[int, ...]) -> str:
    return "*".join(names[j] + (f"^{count}" if count > 1 else "") for j, count in Counter(factors).items())


def pca(step: Pca, on: Fitting) -> Made:
    """As scikit-learn's PCA on centred, and with `scale` on standardised, numbers."""
    columns = on.numbers()
    x = on.present(columns)
    mean = np.nanmean(x, axis=0)
    x = np.where(np.isnan(x), mean, x) - mean
    spread = x.std(axis=0) if step.scale else np.ones(len(mean))
    spread[spread == 0] = 1.0
    asked = step.variance if step.components is None else step.components
    _check_components(step.components, x.shape, on)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of columns without variance
        found = PCA(asked, random_state=on.data.training.seed).fit(x / spread)
    weights = found.components_.T / spread[:, None]
    share = [round(float(v), 6) for v in found.explained_variance_ratio_[:_SHOWN]]
    facts = {"components": weights.shape[1], "variance_kept": float(np.sum(found.explained_variance_ratio_))}
    stage = _projection("pca", columns, mean, weights - 0.0)
    return [stage], facts | {"variance_of_each": share}


def svd(step: Svd, on: Fitting) -> Made:
    """As scikit-learn's TruncatedSVD."""
    columns = on.numbers()
    x = np.nan_to_num(on.present(columns), nan=0.0)
    _check_components(step.components, x.shape, on)
    found = TruncatedSVD(step.components, algorithm="arpack" if step.components < min(x.shape) else "randomized",
                         random_state=on.data.training.seed).fit(x)  # fmt: skip
    stage = _projection("svd", columns, np.zeros(x.shape[1]), found.components_.T)
    return [stage], {
        "components": step.components, "variance_kept": float(np.sum(found.explained_variance_ratio_))
    }  # fmt: skip


def _check_components(components: int | None, shape: tuple[int, ...], on: Fitting) -> None:
    if components is not None and components > min(shape):
        on.refuse(f"{components} components of {shape[1]} columns and {shape[0]} rows; ask for fewer", "components")


def _projection(name: str, columns: tuple[int, ...], mean: Array, weights: Array) -> Stage:
    """(x - mean) @ weights, where a missing x is the mean."""

    def nodes(graph: Graph, read: str) -> str:
        filled = graph.add("Where", graph.add("IsNaN", read), doubles(graph, mean), read)
        centred = graph.add("Sub", filled, doubles(graph, mean))
        return graph.add("MatMul", centred, doubles(graph, weights))

    made: tuple[tuple[str, ColumnType], ...] = tuple((f"{name}_{i + 1}", "number") for i in range(weights.shape[1]))
    return Stage("numeric", columns, columns, made, "numeric", nodes)


def select(step: Select, on: Fitting) -> Made:
    """The best numbers by a score of training rows; ties go to the earlier column."""
    columns = on.numbers()
    x = on.present(columns)
    scores = np.nanvar(x, axis=0) if step.by == "variance" else _scores(step, x, on)
    if step.threshold is not None:
        kept = scores > step.threshold
        if not kept.any():
            on.refuse(f"no column varies by more than {step.threshold:g}; lower it", "threshold")
    else:
        kept = np.zeros(len(columns), bool)
        kept[np.argsort(-scores, kind="stable")[: step.k]] = True
    dropped = tuple(column for column, keep in zip(columns, kept, strict=True) if not keep)
    best = np.argsort(-scores, kind="stable")[:_SHOWN]
    names = on.names("numeric", columns)
    facts = {
        "dropped": on.names("numeric", dropped)[:_SHOWN], "scores": {names[j]: float(scores[j]) for j in best},
    }  # fmt: skip
    return [Stage("numeric", drop=dropped)], facts


def _scores(step: Select, x: Array, on: Fitting) -> Array:
    """How much each column tells of the target; a missing value counts as the median."""
    x, y, seed = np.where(np.isnan(x), np.nanmedian(x, axis=0), x), on.y, on.data.training.seed
    regression = on.data.task == "regression"
    if step.by == "mutual_information":
        if len(x) > _SCORED_ROWS:
            rows = np.sort(np.random.default_rng(seed).choice(len(x), _SCORED_ROWS, replace=False))
            x, y = x[rows], y[rows]
        score: Any = mutual_info_regression if regression else mutual_info_classif
        return np.asarray(score(x, y, random_state=seed))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of columns of one value
        found, _ = (f_regression if regression else f_classif)(x, y)
    return np.asarray(np.nan_to_num(np.asarray(found), nan=0.0, posinf=np.finfo(np.float64).max))
