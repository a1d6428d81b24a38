"""Steps on categories: impute, one-hot, ordinal, target mean, hash."""

import warnings
from collections import Counter
from typing import Any

import numpy as np
from sklearn.model_selection import KFold, PredefinedSplit, StratifiedKFold
from sklearn.preprocessing import TargetEncoder

from app.core.signature import ColumnType
from app.specs.features import Hash, Impute, OneHot, Ordinal, TargetEncode
from workers.export.graph import ORT, Graph
from workers.families.encoding import CategoryEncoder
from workers.families.target_means import split_folds
from workers.features.fitting import Fitting
from workers.features.stage import Nodes, Stage, doubles
from workers.learning import Array

Made = tuple[list[Stage], dict[str, Any]]
_INTEGER, _TEXT, _DOUBLE = 7, 8, 11  # ONNX element types


def _is(graph: Graph, name: str, text: str) -> str:
    return graph.add("Equal", name, graph.constant(np.asarray([text], object), object))


def impute_categories(step: Impute, on: Fitting) -> Made:
    """Columns that are named, or that have gaps in training rows; else nothing."""
    gaps = on.table.tensors["categorical"] == ""
    columns = on.to_fill("categorical", gaps)
    if not columns:
        return [], {}
    fill = [_fill(step, on, j) for j in columns]

    def flags(graph: Graph, name: str) -> str:
        return graph.add("Cast", _is(graph, name, ""), to=_DOUBLE)

    def nodes(graph: Graph, name: str) -> str:
        return graph.add("Where", _is(graph, name, ""), graph.constant(np.asarray([fill], object), object), name)

    named = on.names("categorical", columns)
    stages = [on.in_place("categorical", columns, nodes)]
    if step.flag:
        made: tuple[tuple[str, ColumnType], ...] = tuple((f"{name} missing", "boolean") for name in named)
        stages.insert(0, Stage("categorical", columns, (), made, "numeric", flags))
    filled = dict(zip(named, gaps[:, list(columns)].sum(axis=0).tolist(), strict=True))
    return stages, {"filled": filled, "values": dict(zip(named, fill, strict=True))}


def _fill(step: Impute, on: Fitting, column: int) -> str:
    if step.strategy == "constant":
        return str(step.value)
    values = on.table.tensors["categorical"][:, column]
    ranked = _by_frequency(values[values != ""])
    if not ranked:
        on.refuse(f"'{on.names('categorical', [column])[0]}' has no value in the training rows; drop it")
    return ranked[0]


def _by_frequency(values: Array) -> list[str]:
    counts = Counter(values.tolist())
    return sorted(counts, key=lambda value: (-counts[value], value))


def one_hot(step: OneHot, on: Fitting) -> Made:
    """The most frequent categories of training rows."""
    columns = on.categories()
    known, seen = [], {}
    for name, values in zip(on.names("categorical", columns), on.block("categorical", columns).T, strict=True):
        ranked = _by_frequency(values[values != ""])
        known.append(tuple(ranked[: step.max_categories]))
        seen[name] = len(ranked)
    if not any(known):
        on.refuse("the columns have no value in the training rows; name others, or drop them")
    on.check_count(sum(map(len, known)))
    owner = np.repeat(np.arange(len(known)), [len(categories) for categories in known])
    code = np.concatenate([np.arange(len(categories)) for categories in known]).astype(np.int64)
    tables = [np.arange(len(categories) + 1, dtype=np.int64) for categories in known]

    def nodes(graph: Graph, name: str) -> str:
        codes = CategoryEncoder(tuple(known)).to_nodes(graph, name, list(tables))
        own = graph.add("Gather", codes, graph.constant(owner, np.int64), axis=1)
        return graph.add("Cast", graph.add("Equal", own, graph.constant(code, np.int64)), to=_DOUBLE)

    names = on.names("categorical", columns)
    made: tuple[tuple[str, ColumnType], ...] = tuple(
        (f"{name}={category}", "boolean")
        for name, categories in zip(names, known, strict=True)
        for category in categories
    )
    return [Stage("categorical", columns, columns, made, "numeric", nodes)], {"categories": seen}


def ordinal(step: Ordinal, on: Fitting) -> Made:
    """Places in the orders that are given. InvalidData if an order fits no training row."""
    columns = tuple(on.find("categorical", ("orders", name), name) for name in step.orders)
    known = tuple(tuple(order) for order in step.orders.values())
    others = {}
    for name, values in zip(step.orders, on.block("categorical", columns).T, strict=True):
        counts = Counter(values[values != ""].tolist())
        strange = [value for value in counts if value not in step.orders[name]]
        if len(strange) == len(counts):
            on.refuse(f"no training row of '{name}' is in this order; it has {sorted(strange)[:10]}", "orders", name)
        others[name] = {value: counts[value] for value in sorted(strange)[:20]}
    tables = [np.asarray([*range(len(order)), np.nan]) for order in known]

    def nodes(graph: Graph, name: str) -> str:
        return CategoryEncoder(known).to_nodes(graph, name, list(tables))

    return [on.in_place("categorical", columns, nodes, "integer")], {"not_in_order": others}


def target_encode(step: TargetEncode, on: Fitting) -> Made:
    """As scikit-learn's TargetEncoder: what is served is the mean of all training rows of a category."""
    columns = on.categories()
    x, data = on.block("categorical", columns), on.data
    classes = np.unique(on.y) if data.task == "classification" else np.zeros(0)
    several = len(classes) > 2  # noqa: PLR2004 - two classes need one column
    target = "continuous" if data.task == "regression" else ("multiclass" if several else "binary")
    encoder = TargetEncoder(target_type=target, smooth=step.smooth, cv=_folds(step, on))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # it is missing in some folds
        crossed = encoder.fit_transform(x, on.y)
    width = len(classes) if several else 1
    known = tuple(tuple(categories.tolist()) for categories in encoder.categories_)
    unseen = np.broadcast_to(np.atleast_1d(encoder.target_mean_), (width,))
    means = [
        np.stack([*encoder.encodings_[j * width : (j + 1) * width]], axis=1) for j in range(len(columns))
    ]  # [categories, width]
    table = np.concatenate([np.concatenate([mean, unseen[None]]) for mean in means])
    sizes = [len(categories) + 1 for categories in known]
    starts = np.cumsum([0, *sizes[:-1]])
    rows = [np.arange(start, start + size, dtype=np.int64) for start, size in zip(starts, sizes, strict=True)]
    names = on.names("categorical", columns)
    labels = [data.signature.classes[int(c)] for c in classes] if several else [""]
    made: tuple[tuple[str, ColumnType], ...] = tuple(
        (f"{name} target {label}" if label else name, "number") for name in names for label in labels
    )
    nodes = rows_of_table(known, rows, table)
    stage = Stage("categorical", columns, columns, made, "numeric", nodes, np.asarray(crossed, np.float64))
    return [stage], {"categories": {name: size - 1 for name, size in zip(names, sizes, strict=True)}}


def _folds(step: TargetEncode, on: Fitting) -> Any:  # noqa: ANN401 - one of scikit-learn's splitters
    """Of whole groups where rows are split so; else random. InvalidData where rows are too few."""
    if len(on.y) < step.folds:
        on.refuse(f"there are {len(on.y)} training rows, and each fold needs one; use fewer", "folds")
    if (apart := split_folds(on.data, step.folds)) is not None:
        return PredefinedSplit(apart)
    if on.data.task == "regression":
        return KFold(step.folds, shuffle=True, random_state=on.data.training.seed)
    if np.unique(on.y, return_counts=True)[1].max() < step.folds:
        on.refuse(f"no class has {step.folds} training rows, one for each fold; use fewer", "folds")
    return StratifiedKFold(step.folds, shuffle=True, random_state=on.data.training.seed)


def rows_of_table(known: tuple[tuple[str, ...], ...], rows: list[Array], table: Array) -> Nodes:
    """The row of `table` of each category, side by side."""

    def nodes(graph: Graph, name: str) -> str:
        places = CategoryEncoder(known).to_nodes(graph, name, list(rows))
        found = graph.add("Gather", doubles(graph, table), places, axis=0)
        return graph.add("Reshape", found, graph.constant([-1, len(known) * table.shape[1]], np.int64))

    return nodes


def hashed(step: Hash, on: Fitting) -> Made:
    """By MurmurHash3 (32 bits, seed 0, as scikit-learn's FeatureHasher); a missing value stays missing."""
    columns = on.categories()

    def nodes(graph: Graph, name: str) -> str:
        number = graph.add("Cast", graph.add("MurmurHash3", name, domain=ORT, positive=1, seed=0), to=_INTEGER)
        bucket = graph.add("Cast", graph.add("Mod", number, graph.constant(step.buckets, np.int64)), to=_TEXT)
        return graph.add("Where", _is(graph, name, ""), name, bucket)

    blocks = zip(on.names("categorical", columns), on.block("categorical", columns).T, strict=True)
    return [on.in_place("categorical", columns, nodes)], {"categories": {n: len(set(x.tolist())) for n, x in blocks}}
