"""Metrics on held-out rows. Every value is finite; what is undefined on the rows at hand is left out."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn import metrics as sk

from app.core.signature import Task
from workers.evaluation.multilabel import weighted_labels
from workers.learning import PLAIN, Array, Rule

LOWER_IS_BETTER = frozenset(
    {"log_loss", "brier", "ece", "rmse", "mae", "mape", "interval_width", "pinball", "rank_mae", "hamming_loss"}
)
BINS = 15  # of equal width, for calibration
_EPSILON = 1e-7  # probabilities are float32; log loss needs them off 0 and 1


def positive_class(y: Array) -> int:
    """Of two classes the rarer one; the second when they are equally frequent."""
    return int(np.mean(y == 1) <= 0.5)  # noqa: PLR2004 - half of the rows


def evaluate(
    task: Task, y: Array, answers: Array, *, rule: Rule = PLAIN, names: Collection[str] | None = None
) -> dict[str, float]:
    """All metrics of a task, or those in `names`.

    Args:
        task: classification or regression.
        y: int64 class indices [N], values [N], or which labels a row has, 0 or 1 [N, K].
        answers: probabilities [N, K], or values [N], or with prediction intervals value, lower and upper [N, 3].
        rule: how answers are read. Of two classes, precision, recall, F1 and the area under the precision-recall curve
            speak of the positive one; with more they are macro averages.
        names: of the metrics to compute; None: all.
    """
    if task == "multilabel":
        several = weighted_labels(y, answers, np.ones((1, len(y))), BINS, names)
        return {name: float(value[0]) for name, value in several.items() if np.isfinite(value[0])}
    judged: Any = Valued.of(y, answers, rule) if task == "regression" else Classified.of(y, answers, rule)
    table: Mapping[str, Callable[[Any], float]] = _REGRESSION if task == "regression" else _CLASSIFICATION
    found = {name: float(compute(judged)) for name, compute in table.items() if names is None or name in names}
    return {name: value for name, value in found.items() if np.isfinite(value)}


@dataclass(frozen=True, slots=True)
class Valued:
    """Values [N] and what was answered; with prediction intervals their ends [N] and the coverage that they promise."""

    y: Array
    answers: Array
    lower: Array | None = None
    upper: Array | None = None
    coverage: float = 0.0

    @classmethod
    def of(cls, y: Array, answers: Array, rule: Rule) -> "Valued":
        """From a model's answers."""
        if answers.ndim == 1:
            return cls(y, answers.astype(np.float64))
        value, lower, upper = answers.astype(np.float64).T
        return cls(y, value, lower, upper, rule.coverage or 0.0)

    def of_intervals(self) -> dict[str, npt.NDArray[np.float64]]:
        """By metric what each row [N] adds to its mean; nothing without intervals.

        `pinball` is the mean of the losses of both ends, taken for the quantiles between which the coverage lies.
        """
        if self.lower is None or self.upper is None:
            return {}
        tail, below, above = (1 - self.coverage) / 2, self.y - self.lower, self.y - self.upper
        low = np.maximum(tail * below, (tail - 1) * below)
        high = np.maximum((1 - tail) * above, -tail * above)
        return {
            "coverage": ((below >= 0) & (above <= 0)).astype(np.float64),
            "interval_width": np.asarray(self.upper - self.lower, np.float64),
            "pinball": np.asarray((low + high) / 2, np.float64),
        }


@dataclass(frozen=True, slots=True)
class Classified:
    """Class indices [N], probabilities as they came [N, K], the same off 0 and 1, and the class that is told [N]."""

    y: Array
    raw: Array
    probabilities: npt.NDArray[np.float64]
    predicted: npt.NDArray[np.int64]
    positive: int
    ordinal: bool = False

    @classmethod
    def of(cls, y: Array, answers: Array, rule: Rule) -> "Classified":
        """From a model's answers."""
        clipped = np.clip(answers.astype(np.float64), _EPSILON, 1 - _EPSILON)
        return cls(
            y, answers, clipped / clipped.sum(axis=1, keepdims=True), rule.labels(answers), rule.positive, rule.ordinal
        )

    @property
    def binary(self) -> bool:
        """Two classes."""
        return len(self.labels) == 2  # noqa: PLR2004 - binary

    @property
    def likeliest_is_right(self) -> npt.NDArray[np.bool_]:
        """Of each row [N]; what calibration is about, whatever the threshold."""
        return np.asarray(self.raw.argmax(axis=1) == self.y)

    @property
    def labels(self) -> list[int]:
        """Every class."""
        return list(range(self.raw.shape[1]))


def _averaged(average: str, at: int, judged: Classified) -> float:
    """Precision (0), recall (1) or F1 (2), averaged over the classes that are there."""
    labels = judged.labels if average == "micro" else np.unique(judged.y)
    found = sk.precision_recall_fscore_support(
        judged.y, judged.predicted, labels=labels, average=average, zero_division=0.0
    )
    return float(found[at])


def _main_kind(at: int, judged: Classified) -> float:
    """Precision (0), recall (1) or F1 (2) of the positive class, or a macro average."""
    if not judged.binary:
        return _averaged("macro", at, judged)
    found = sk.precision_recall_fscore_support(
        judged.y, judged.predicted, average="binary", pos_label=judged.positive, zero_division=0.0
    )
    return float(found[at])


def _several(judged: Classified) -> bool:
    return len(np.unique(judged.y)) > 1


def _roc_auc(judged: Classified) -> float:
    """Area under the ROC curve; for several classes the mean of one-versus-rest over those present."""
    if not _several(judged):
        return float("nan")
    if judged.binary:
        return float(sk.roc_auc_score(judged.y, judged.raw[:, 1]))
    return float(np.mean([sk.roc_auc_score(judged.y == k, judged.raw[:, k]) for k in np.unique(judged.y)]))


def _pr_auc(judged: Classified) -> float:
    """Average precision; for several classes the mean of one-versus-rest over those present."""
    if not _several(judged):
        return float("nan")
    classes = [judged.positive] if judged.binary else np.unique(judged.y)
    return float(np.mean([sk.average_precision_score(judged.y == k, judged.raw[:, k]) for k in classes]))


def _brier(judged: Classified) -> float:
    """Mean squared error of the probabilities: of one class for two, summed over the classes for more."""
    if judged.binary:
        return float(sk.brier_score_loss(judged.y, judged.probabilities[:, 1], labels=[0, 1], pos_label=1))
    return float(sk.brier_score_loss(judged.y, judged.probabilities, labels=judged.labels))


def calibration_bins(confidence: Array) -> npt.NDArray[np.int64]:
    """The bin of each probability [N], 0 to BINS - 1; a bin takes in its upper edge."""
    return np.clip(np.ceil(confidence.astype(np.float64) * BINS).astype(np.int64) - 1, 0, BINS - 1)


def calibration_error(confidence: Array, right: Array) -> float:
    """Mean distance of confidence and share of right answers over bins of equal width, weighted by their rows."""
    sums = np.bincount(calibration_bins(confidence), confidence.astype(np.float64) - right, BINS)
    return float(np.abs(sums).sum() / len(confidence))


def _quadratic_kappa(judged: Classified) -> float:
    """Agreement beyond chance, where a mistake counts by the square of how many classes it is off (Cohen 1968)."""
    if not judged.ordinal or not _several(judged):
        return float("nan")
    return float(sk.cohen_kappa_score(judged.y, judged.predicted, labels=judged.labels, weights="quadratic"))


def _mean_of(name: str, judged: Valued) -> float:
    found = judged.of_intervals().get(name)
    return float("nan") if found is None else float(found.mean())


_CLASSIFICATION: dict[str, Callable[[Classified], float]] = {
    "accuracy": lambda c: sk.accuracy_score(c.y, c.predicted),
    "balanced_accuracy": partial(_averaged, "macro", 1),
    "f1": partial(_main_kind, 2),
    "precision": partial(_main_kind, 0),
    "recall": partial(_main_kind, 1),
    "roc_auc": _roc_auc,
    "log_loss": lambda c: sk.log_loss(c.y, c.probabilities, labels=c.labels),
    "f1_macro": partial(_averaged, "macro", 2),
    "f1_micro": partial(_averaged, "micro", 2),
    "f1_weighted": partial(_averaged, "weighted", 2),
    "pr_auc": _pr_auc,
    "brier": _brier,
    "ece": lambda c: calibration_error(c.probabilities.max(axis=1), c.likeliest_is_right),
    "mcc": lambda c: sk.matthews_corrcoef(c.y, c.predicted) if _several(c) else float("nan"),
    "kappa": lambda c: sk.cohen_kappa_score(c.y, c.predicted) if _several(c) else float("nan"),
    "quadratic_kappa": _quadratic_kappa,
    "rank_mae": lambda c: float(np.abs(c.y - c.predicted).mean()) if c.ordinal else float("nan"),
    "accuracy_within_one": lambda c: float((np.abs(c.y - c.predicted) <= 1).mean()) if c.ordinal else float("nan"),
}
_REGRESSION: dict[str, Callable[[Valued], float]] = {
    "rmse": lambda v: sk.root_mean_squared_error(v.y, v.answers),
    "mae": lambda v: sk.mean_absolute_error(v.y, v.answers),
    "r2": lambda v: sk.r2_score(v.y, v.answers) if len(v.y) > 1 else float("nan"),
    "mape": lambda v: sk.mean_absolute_percentage_error(v.y, v.answers) if np.all(v.y) else float("nan"),
    "coverage": partial(_mean_of, "coverage"),
    "interval_width": partial(_mean_of, "interval_width"),
    "pinball": partial(_mean_of, "pinball"),
}


def metric_drop(name: str, base: float, other: float) -> float:
    """How much worse `other` is than `base`: absolute, but relative for metrics that are errors. Negative is better."""
    if name in LOWER_IS_BETTER:
        return (other - base) / max(abs(base), 1e-12)
    return base - other


def baseline(task: Task, y_train: Array, count: int, n_classes: int) -> npt.NDArray[np.float64]:
    """What a model without inputs answers for `count` rows: the training mean, or the training class shares."""
    if task == "regression":
        return np.full(count, float(np.mean(y_train)))
    if task == "multilabel":
        return np.tile(y_train.mean(axis=0, dtype=np.float64), (count, 1))
    shares = np.bincount(y_train, minlength=n_classes) / len(y_train)
    return np.tile(shares, (count, 1))


def order(found: dict[str, float], first: Sequence[str]) -> dict[str, float]:
    """The same metrics with those in `first` at the front."""
    names = [name for name in first if name in found]
    return {name: found[name] for name in [*names, *(n for n in found if n not in names)]}
