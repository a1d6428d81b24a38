"""Metrics by name, and how closely a training looks at what it made."""

from typing import Annotated, Literal

from pydantic import Field

from app.specs.base import Spec

MetricName = Literal[
    "accuracy", "balanced_accuracy", "f1", "precision", "recall", "roc_auc", "log_loss", "f1_macro", "f1_micro",
    "f1_weighted", "pr_auc", "brier", "ece", "mcc", "kappa", "rmse", "mae", "r2", "mape",
]  # fmt: skip
REGRESSION_METRICS = frozenset({"rmse", "mae", "r2", "mape"})


class EvaluationSpec(Spec):
    """What is measured besides the metrics of each part; folds and the learning curve take further fits."""

    folds: Annotated[
        int | None,
        Field(ge=2, le=20, description="cross-validate over the rows that are not test rows, by so many more fits"),
    ] = None
    slices: Annotated[
        list[str], Field(max_length=20, description="columns; metrics for each of their values, or quarters of numbers")
    ] = []
    learning_curve: Annotated[
        bool, Field(description="fit on 10, 25 and 50 % of the training rows too, to see if more rows would help")
    ] = False
    plots: Annotated[bool, Field(description="draw plots, which takes half a second")] = True
