"""What may be asked of targets: weights of classes, an order, several labels, thresholds, intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from app.core.errors import InvalidSpec
from app.specs.base import CHOICE, OBJECT, OTHER
from app.specs.families import Family

if TYPE_CHECKING:
    from app.specs.jobs import TrainSpec

_Weights = Annotated[dict[str, Annotated[float, Field(gt=0, le=1e6)]], Field(min_length=1, max_length=1000)]
ClassWeight = Annotated[Annotated[_Weights, OBJECT] | Annotated[Literal["balanced"], OTHER], CHOICE]
_BY_TARGET = frozenset({"target_encode", "select"})  # steps that are fitted by the target


def check_targets(spec: TrainSpec, chosen: Family) -> None:
    """InvalidSpec names what is asked of classes or values that task or family do not have."""
    if spec.training.class_weight is not None:
        if spec.task != "classification":
            raise InvalidSpec.at("training", "class_weight", msg=f"{spec.task} has no classes; leave it out")
        if not chosen.weighs_classes:
            msg = f"'{chosen.name}' weighs no classes; evaluation.threshold moves the decision instead"
            raise InvalidSpec.at("training", "class_weight", msg=msg)
    if spec.separator is not None and spec.task != "multilabel":
        raise InvalidSpec.at("separator", msg=f"{spec.task} has one answer a row; leave it out")
    for at, step in enumerate(spec.features.steps):
        if spec.task == "multilabel" and step.step in _BY_TARGET and getattr(step, "by", "") != "variance":
            msg = f"'{step.step}' takes a target of one answer a row; leave it out"
            raise InvalidSpec.at("features", "steps", at, "step", msg=msg)
    if spec.ordinal is not None:
        _check_order(spec, spec.ordinal)
    _check_evaluation(spec)


def _check_evaluation(spec: TrainSpec) -> None:
    if spec.evaluation.threshold is not None and spec.task != "classification":
        msg = f"{spec.task} has no two classes to tell apart; leave it out"
        raise InvalidSpec.at("evaluation", "threshold", msg=msg)
    if spec.evaluation.intervals is not None and spec.task != "regression":
        msg = "intervals are of values, classes have probabilities; leave it out"
        raise InvalidSpec.at("evaluation", "intervals", msg=msg)
    if spec.evaluation.interval_width != "same" and spec.evaluation.intervals is None:
        msg = "there are no intervals; name their coverage in evaluation.intervals, or leave it out"
        raise InvalidSpec.at("evaluation", "interval_width", msg=msg)


def _check_order(spec: TrainSpec, labels: list[str]) -> None:
    if spec.task != "classification":
        raise InvalidSpec.at("ordinal", msg=f"{spec.task} has no classes that could be in order; leave it out")
    if len(set(labels)) < len(labels):
        raise InvalidSpec.at("ordinal", msg="a label is named twice")
    if spec.params.get("l1_ratio"):
        raise InvalidSpec.at("params", "l1_ratio", msg="of ordered classes there is L2 alone; leave it out")
