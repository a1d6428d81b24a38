"""What is tried, in this order: the first are the likeliest winners, the later ones differ most from them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from app.core.errors import InvalidSpec
from app.specs.augment import AugmentSpec
from app.specs.families import DataKind, families
from app.specs.training import EarlyStoppingSpec, OptimizerSpec, TrainingSpec
from workers.families.values import come_again
from workers.learning import LearningData


@dataclass(frozen=True, slots=True)
class Candidate:
    """A family with parameters, under a name of its own; `lr` is of its network, if it is one.

    It is not tried where the candidate `like` was no better than the one `than`: what they differ in did not suit the
    data.
    If it is chosen, `relearns` models learn once more, from all rows, each with a seed of its own: of candidates that
    need no rows to stop by, or whose rounds the folds have told.
    """

    name: str
    family: str
    params: Mapping[str, Any] = field(default_factory=dict)
    lr: float = 0.001
    like: str = ""
    than: str = "gbdt"
    relearns: int = 0


@dataclass(frozen=True, slots=True)
class Loop:
    """How long networks over one kind of data learn: enough steps for small data, few passes over large."""

    batch: int
    steps: int  # of an optimizer, about
    least: int  # epochs
    most: int
    augment: AugmentSpec | None = None
    label_smoothing: float = 0.0
    weight_decay: float = 0.01


_TREES = 4  # models of all rows, if there is time: their mean is better than one, and than that of five folds
_TABLES = (
    Candidate("gbdt", "gbdt", relearns=_TREES),
    Candidate(
        "gbdt-narrow", "gbdt",
        {
            "learning_rate": 0.03, "num_leaves": 16, "colsample": 0.3, "min_child_samples": 5, "one_hot": 50,
            "n_estimators": 3000,
        },
        relearns=_TREES,
    ),
    Candidate(
        "gbdt-values", "gbdt",
        {
            "learning_rate": 0.03, "num_leaves": 16, "colsample": 0.3, "min_child_samples": 5, "one_hot": 50,
            "values": 1000, "n_estimators": 3000,
        },
        like="gbdt-narrow", relearns=_TREES,
    ),
    Candidate(
        "gbdt-gentle", "gbdt",
        {
            "learning_rate": 0.03, "num_leaves": 8, "colsample": 0.3, "min_child_samples": 50, "reg_lambda": 10.0,
            "n_estimators": 3000,
        },
        like="gbdt-narrow", relearns=_TREES,
    ),
    Candidate(
        "gbdt-values-gentle", "gbdt",
        {
            "learning_rate": 0.03, "num_leaves": 8, "colsample": 0.3, "min_child_samples": 50, "reg_lambda": 10.0,
            "values": 1000, "n_estimators": 3000,
        },
        like="gbdt-values", than="gbdt-narrow", relearns=_TREES,
    ),
    Candidate(
        "gbdt-pairs", "gbdt",
        {"learning_rate": 0.03, "num_leaves": 31, "colsample": 0.5, "pairs": 2, "n_estimators": 3000},
        relearns=_TREES,
    ),
    Candidate("linear", "linear", relearns=1),
    Candidate("xgboost", "xgboost", {"max_depth": 5, "colsample": 0.4}, relearns=_TREES),
    Candidate("mlp", "mlp", {"hidden": [256, 128], "dropout": 0.15, "bins": 24}, lr=0.002),
    Candidate(
        "gbdt-slow", "gbdt",
        {
            "learning_rate": 0.025, "num_leaves": 63, "colsample": 0.5, "min_child_samples": 40, "n_estimators": 3000,
        },
        relearns=_TREES,
    ),
    Candidate(
        "gbdt-pairs-slow", "gbdt",
        {
            "learning_rate": 0.025, "num_leaves": 63, "colsample": 0.5, "min_child_samples": 40, "pairs": 1,
            "n_estimators": 3000,
        },
        like="gbdt-pairs", relearns=_TREES,
    ),
    Candidate(
        "gbdt-additive", "gbdt", {"learning_rate": 0.1, "num_leaves": 3, "colsample": 0.3, "n_estimators": 3000},
        like="gbdt-narrow", relearns=_TREES,
    ),
    Candidate(
        "gbdt-pairs-narrow", "gbdt",
        {
            "learning_rate": 0.03, "num_leaves": 16, "colsample": 0.3, "min_child_samples": 5, "one_hot": 50,
            "pairs": 1, "n_estimators": 4000,
        },
        like="gbdt-pairs", relearns=_TREES,
    ),
    Candidate("extra_trees", "extra_trees", {"n_estimators": 300, "max_depth": 24}, relearns=1),
    Candidate("mlp-wide", "mlp", {"hidden": [512, 256, 128], "dropout": 0.3, "activation": "silu", "bins": 8}),
    Candidate(
        "gbdt-narrow-slow", "gbdt",
        {"learning_rate": 0.02, "num_leaves": 20, "colsample": 0.25, "min_child_samples": 10, "n_estimators": 4000},
        like="gbdt-narrow", relearns=_TREES,
    ),
    Candidate(
        "xgboost-narrow", "xgboost",
        {"max_depth": 6, "learning_rate": 0.03, "colsample": 0.25, "min_child_weight": 5, "n_estimators": 3000},
        like="gbdt-narrow", relearns=_TREES,
    ),
    Candidate("ft_transformer", "ft_transformer"),
    Candidate("random_forest", "random_forest", {"n_estimators": 300, "max_depth": 20}, relearns=1),
    Candidate(
        "xgboost-deep", "xgboost",
        {"max_depth": 9, "learning_rate": 0.03, "min_child_weight": 8, "colsample": 0.5, "n_estimators": 2000},
        relearns=_TREES,
    ),
    Candidate("naive_bayes", "naive_bayes", relearns=1),
)  # fmt: skip
_TEXTS = (
    Candidate("text_linear", "text_linear", relearns=1),
    Candidate("text_cnn", "text_cnn", lr=0.002),
    Candidate("rnn", "rnn", {"cell": "gru"}, lr=0.002),
    Candidate("text_linear-words", "text_linear", {"words": 3, "characters": 0, "min_rows": 1}, relearns=1),
    Candidate("text_cnn-wide", "text_cnn", {"width": 256, "windows": [1, 2, 3], "filters": 256}),
    Candidate("text_linear-characters", "text_linear", {"words": 0, "characters": 6}, relearns=1),
    Candidate("transformer", "transformer"),
)
_PICTURES = (
    Candidate("resnet-small", "resnet", {"widths": [32, 64, 128]}, lr=0.004),
    Candidate("resnet", "resnet", lr=0.004),
    Candidate("mobilenet", "mobilenet", lr=0.003),
    Candidate("convnext", "convnext", lr=0.002),
    Candidate("cnn", "cnn", lr=0.003),
    Candidate("vit", "vit"),
)
PLANS: dict[DataKind, tuple[tuple[Candidate, ...], Loop]] = {
    "tabular": (_TABLES, Loop(batch=256, steps=3000, least=12, most=100)),
    "text": (_TEXTS, Loop(batch=64, steps=1500, least=5, most=30)),
    # Mirrored pictures may be other things (digits, signs), shifted ones are not.
    "image": (
        _PICTURES,
        Loop(128, 5000, 10, 60, AugmentSpec(crop=2), label_smoothing=0.1, weight_decay=0.05),
    ),
}  # fmt: skip
BOOSTED = frozenset({"gbdt", "xgboost"})
_FORESTS = frozenset({"extra_trees", "random_forest"})
# Of a forest, about: 35 MB as a graph. Those of all folds are in memory at once.
_FOREST_NODES = 1_000_000
_FEWEST_TREES = 60
_LARGE = 200  # batches an epoch; of more, batches are four times as large


def portfolio(kind: DataKind, data: LearningData, only: Sequence[str] | None = None) -> list[Candidate]:
    """All that can learn this task from such data; families of third parties come last, as they are.

    InvalidSpec if none of `only` does the task.
    """
    usable = [found for found in families().values() if not found.tries and found.data == kind]
    known = {found.name for found in usable if data.task in found.tasks}
    if only is not None:
        known &= set(only)
    if not known:
        raise InvalidSpec.at("params", "families", msg=f"none of these families does {data.task}")
    planned = [
        _bounded(candidate, data)
        for candidate in PLANS[kind][0]
        if candidate.family in known and _differs(candidate, data)
    ]
    others = sorted(known - {candidate.family for candidate in planned})
    return [*planned, *(Candidate(name, name) for name in others)]


def _differs(candidate: Candidate, data: LearningData) -> bool:
    """False for one by the values of numbers where no number comes again: it would be another once more."""
    most, numbers = candidate.params.get("values"), data.train.inputs.get("numeric")
    return not most or (numbers is not None and bool(come_again(numbers, most)))


def _bounded(candidate: Candidate, data: LearningData) -> Candidate:
    """A forest with so few trees, and such large leaves, that it stays within _FOREST_NODES on this data.

    Leaves of two rows make about three nodes for four rows. A leaf has a number for each class.
    """
    if candidate.family not in _FORESTS:
        return candidate
    wide = data.n_classes if data.n_classes > 2 else 1  # noqa: PLR2004 - two classes need one number
    rows = (len(data.train) + len(data.validation)) * wide
    most = int(candidate.params["n_estimators"])
    trees = min(most, max(_FEWEST_TREES, round(_FOREST_NODES / (0.75 * rows))))
    leaf = max(2, math.ceil(1.5 * rows * trees / _FOREST_NODES))
    bounds = {"n_estimators": trees, "min_samples_leaf": leaf}
    return replace(candidate, params={**candidate.params, **bounds})


def training_of(kind: DataKind, candidate: Candidate, rows: int, given: TrainingSpec) -> TrainingSpec:
    """The training loop of a candidate. Seed, precision and, if there is one, augmentation are the job's."""
    loop = PLANS[kind][1]
    batch = loop.batch if rows < _LARGE * loop.batch else 4 * loop.batch
    epochs = min(max(round(loop.steps * batch / rows), loop.least), loop.most)
    return TrainingSpec(
        epochs=epochs, batch_size=batch, optimizer=OptimizerSpec(lr=candidate.lr, weight_decay=loop.weight_decay),
        seed=given.seed, precision=given.precision, augment=given.augment or loop.augment,
        label_smoothing=loop.label_smoothing,
        early_stopping=EarlyStoppingSpec(patience=max(4, epochs // 4)),
        checkpoint_every_s=given.checkpoint_every_s,
    )  # fmt: skip
