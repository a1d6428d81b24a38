"""What is tried, in this order: the first are the likeliest winners, the later ones differ most from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.core.errors import InvalidSpec
from app.specs.families import families, family
from app.specs.jobs import EarlyStoppingSpec, OptimizerSpec, TrainingSpec
from workers.learning import LearningData

_STEPS = 3000  # of an optimizer, about, for a network
_BATCH = 256
_SELF = "auto"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A family with parameters, under a name of its own."""

    name: str
    family: str
    params: Mapping[str, Any] = field(default_factory=dict)
    lr: float = 0.001


_TABLES = (
    Candidate("gbdt", "gbdt"),
    Candidate("gbdt-narrow", "gbdt", {"num_leaves": 16, "colsample": 0.3}),
    Candidate("linear", "linear"),
    Candidate("xgboost", "xgboost", {"max_depth": 5, "colsample": 0.4}),
    Candidate("mlp", "mlp", {"hidden": [256, 128], "dropout": 0.15, "bins": 24}, lr=0.002),
    Candidate(
        "gbdt-slow", "gbdt", {"learning_rate": 0.025, "num_leaves": 63, "colsample": 0.5, "min_child_samples": 40}
    ),
    Candidate("extra_trees", "extra_trees", {"n_estimators": 300, "max_depth": 24}),
    Candidate("mlp-wide", "mlp", {"hidden": [512, 256, 128], "dropout": 0.3, "activation": "silu", "bins": 8}),
    Candidate(
        "gbdt-narrow-slow", "gbdt",
        {"learning_rate": 0.02, "num_leaves": 20, "colsample": 0.25, "min_child_samples": 10, "n_estimators": 4000},
    ),
    Candidate(
        "xgboost-narrow", "xgboost",
        {"max_depth": 6, "learning_rate": 0.03, "colsample": 0.25, "min_child_weight": 5, "n_estimators": 3000},
    ),
    Candidate("gbdt-shallow", "gbdt", {"num_leaves": 8, "learning_rate": 0.08, "reg_lambda": 5.0}),
    Candidate("ft_transformer", "ft_transformer"),
    Candidate("random_forest", "random_forest", {"n_estimators": 300, "max_depth": 20}),
    Candidate(
        "xgboost-deep", "xgboost", {"max_depth": 9, "learning_rate": 0.03, "min_child_weight": 8, "colsample": 0.5}
    ),
    Candidate("naive_bayes", "naive_bayes"),
)  # fmt: skip


def portfolio(data: LearningData, only: Sequence[str] | None = None) -> list[Candidate]:
    """All that can learn this task from such data; families of third parties come last, as they are.

    InvalidSpec if none of `only` does the task.
    """
    kind = family(_SELF).data
    known = {name for name, found in families().items() if found.data == kind and data.task in found.tasks}
    if only is not None:
        known &= set(only)
    if not known - {_SELF}:
        raise InvalidSpec.at("params", "families", msg=f"none of these families does {data.task}")
    planned = [candidate for candidate in _TABLES if candidate.family in known]
    others = sorted(known - {candidate.family for candidate in planned} - {_SELF})
    return [*planned, *(Candidate(name, name) for name in others)]


def training_of(candidate: Candidate, rows: int, given: TrainingSpec) -> TrainingSpec:
    """The training loop of a candidate: enough steps for small data, few passes over large; the job's own seed."""
    batch = _BATCH if rows < 200 * _BATCH else 4 * _BATCH
    epochs = min(max(round(_STEPS * batch / rows), 12), 100)
    return TrainingSpec(
        epochs=epochs, batch_size=batch, optimizer=OptimizerSpec(lr=candidate.lr), seed=given.seed,
        early_stopping=EarlyStoppingSpec(patience=max(4, epochs // 4)),
        checkpoint_every_s=given.checkpoint_every_s,
    )  # fmt: skip
