"""Metrics by name, and how closely a training looks at what it made."""

from typing import Annotated, Literal, get_args

from pydantic import Field

from app.core.signature import Task
from app.specs.base import CHOICE, OBJECT, OTHER, Spec

MetricName = Literal[
    "accuracy", "balanced_accuracy", "f1", "precision", "recall", "roc_auc", "log_loss", "f1_macro", "f1_micro",
    "f1_weighted", "pr_auc", "brier", "ece", "mcc", "kappa", "quadratic_kappa", "rank_mae",
    "accuracy_within_one", "subset_accuracy", "hamming_loss", "label_ranking_ap", "rmse", "mae", "r2", "mape",
]  # fmt: skip
REGRESSION_METRICS = frozenset({"rmse", "mae", "r2", "mape"})


MULTILABEL_METRICS = frozenset({
    "f1_micro", "f1_macro", "subset_accuracy", "hamming_loss", "label_ranking_ap", "roc_auc", "pr_auc", "log_loss",
    "brier", "ece",
})  # fmt: skip


def metrics_of(task: Task) -> frozenset[str]:
    """The metrics that a task has."""
    if task == "regression":
        return REGRESSION_METRICS
    only = {"subset_accuracy", "hamming_loss", "label_ranking_ap"}
    return MULTILABEL_METRICS if task == "multilabel" else frozenset(get_args(MetricName)) - REGRESSION_METRICS - only


ThresholdMetric = Literal["f1", "f1_macro", "accuracy", "balanced_accuracy", "mcc", "kappa"]


class TunedThreshold(Spec):
    """The threshold that is best for a metric on validation rows; of `auto` on rows that each model left out."""

    maximize: Annotated[ThresholdMetric, Field(description="f1 is of the rarer class")]


_Probability = Annotated[float, Field(gt=0, lt=1)]
_Threshold = Annotated[Annotated[TunedThreshold, OBJECT] | Annotated[_Probability, OTHER], CHOICE]


ORDINAL_METRICS = frozenset({"quadratic_kappa", "rank_mae", "accuracy_within_one"})


def default_metric(task: Task, n_classes: int) -> str:
    """The main metric where the spec names none."""
    if task != "classification":
        return "rmse" if task == "regression" else "f1_micro"
    return "roc_auc" if n_classes == 2 else "accuracy"  # noqa: PLR2004 - binary


Slices = Annotated[
    list[str], Field(max_length=20, description="columns; metrics for each of their values, or quarters of numbers")
]


class EvaluationSpec(Spec):
    """What is measured besides the metrics of each part; folds and the learning curve take further fits."""

    folds: Annotated[
        int | None,
        Field(ge=2, le=20, description="cross-validate over the rows that are not test rows, by so many more fits"),
    ] = None
    slices: Slices = []
    learning_curve: Annotated[
        bool, Field(description="fit on 10, 25 and 50 % of the training rows too, to see if more rows would help")
    ] = False
    threshold: Annotated[
        _Threshold | None,
        Field(
            description="of two classes: the rarer one is told from this probability on; null: the likelier one",
            examples=[0.3, {"maximize": "f1"}],
        ),
    ] = None
    intervals: Annotated[
        float | None,
        Field(
            ge=0.5,
            le=0.99,
            description="regression: give intervals that hold this share of the true values, such as 0.9",
        ),
    ] = None
    interval_width: Annotated[
        Literal["same", "by_row"],
        Field(description="of intervals; by_row: wider where the model is usually further off, as a second one tells"),
    ] = "same"
    plots: Annotated[bool, Field(description="draw plots, which takes half a second")] = True
