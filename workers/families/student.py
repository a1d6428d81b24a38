"""Boosted trees that learn from another model's answers in place of labels (distillation)."""

from collections.abc import Callable
from typing import Any

import lightgbm as lgb
from scipy.special import softmax  # type: ignore[import-untyped]  # no stubs

from workers.families.encoding import TreeEncoder
from workers.families.gbdt import FittedGbdt
from workers.learning import Array, Inputs, LearningData


def fit_student(
    data: LearningData, inputs: Inputs, teacher: Array, *, rounds: int, leaves: int, learning_rate: float,
    watch: Callable[[], None] = lambda: None,
) -> FittedGbdt:  # fmt: skip
    """A booster whose answers come near the teacher's; labels only tell how categories are encoded.

    Args:
        data: training rows with their labels, for the encoding.
        inputs: rows that the teacher was asked, FP32 and str [N, …].
        teacher: its answers: probabilities [N, K], or standardised values [N].
        rounds: of boosting.
        leaves: of a tree, at most.
        learning_rate: of boosting.
        watch: called after each round; what it raises ends the training.
    """
    encoder, _ = TreeEncoder.learn(data, keep_missing=True)
    x = encoder.transform(inputs)
    settings: dict[str, Any] = {
        "num_leaves": leaves, "learning_rate": learning_rate, "min_child_samples": 20, "seed": data.training.seed,
        "num_threads": data.threads, "deterministic": True, "force_row_wise": True, "verbosity": -1,
    }  # fmt: skip
    label = teacher
    if data.task == "regression":
        settings["objective"] = "regression"
    elif teacher.shape[1] == 2:  # noqa: PLR2004 - binary
        settings["objective"], label = "cross_entropy", teacher[:, 1]
    else:
        settings |= {"objective": _SoftLabels(teacher), "num_class": teacher.shape[1]}
        label = teacher.argmax(axis=1)  # LightGBM wants one; the objective has its own
    booster = lgb.train(settings, lgb.Dataset(x, label=label), rounds, callbacks=[lambda _: watch()])
    return FittedGbdt(data, encoder, booster, rounds)


class _SoftLabels:
    """Cross entropy between shares of classes and scores, as LightGBM asks for an objective."""

    def __init__(self, shares: Array) -> None:
        self.shares = shares

    def __call__(self, scores: Array, _: lgb.Dataset) -> tuple[Array, Array]:
        told = softmax(scores, axis=1)
        return told - self.shares, 2 * told * (1 - told)  # the factor is LightGBM's own

    def __deepcopy__(self, memo: dict[int, Any]) -> "_SoftLabels":
        return self  # LightGBM copies its settings, and a copy of the rows is of no use
