"""The words of learning: tensors by name, the rows to learn from, and what a family is given."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from app.core.signature import Signature, Task
from app.specs.training import TrainingSpec

Array = npt.NDArray[Any]
Inputs = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Standard:
    """Mean and spread of a regression target, so that families learn values near one."""

    mean: float = 0.0
    scale: float = 1.0

    @classmethod
    def of(cls, values: Array) -> "Standard":
        """Of training targets; a constant target keeps its unit."""
        return cls(float(values.mean()), float(values.std()) or 1.0)

    def shrink(self, values: Array) -> npt.NDArray[np.float64]:
        """To zero mean and unit spread."""
        return (values.astype(np.float64) - self.mean) / self.scale

    def restore(self, values: Array) -> npt.NDArray[np.float64]:
        """Back to the target's own unit."""
        return values.astype(np.float64) * self.scale + self.mean


@dataclass(frozen=True, slots=True)
class Part:
    """Rows to learn from or to watch.

    `inputs` are the graph's inputs as the signature describes them. `y` is int64 [N] class indices, or float64 [N]
    standardised values, or float32 [N, K] of 0 and 1 where a row may have several classes.
    """

    inputs: Inputs
    y: Array

    def __len__(self) -> int:
        return len(self.y)


class RowGroups(Protocol):
    """Training rows that do not fit memory, in groups."""

    def __len__(self) -> int: ...

    @property
    def y(self) -> Array:
        """Of all rows, [N], as a `Part` has it, in the order of the groups."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each group."""

    def read(self, at: int) -> Part:
        """One group."""


@dataclass(frozen=True, slots=True)
class LearningData:
    """All that a family learns from. Test rows are not here."""

    signature: Signature
    train: Part
    validation: Part
    standard: Standard = Standard()
    training: TrainingSpec = field(default_factory=TrainingSpec)
    threads: int = 1
    device: str = "cpu"
    metric: str = ""  # the main one
    class_weights: npt.NDArray[np.float64] | None = None  # [K]: how much a row of each class counts; None: all alike
    streamed: RowGroups | None = None  # all training rows, where `train` holds some of them
    # Of so many folds, the one of each training and then validation row; -1 where it may not be left out. None: any.
    folds: Callable[[int], npt.NDArray[np.int64]] | None = None

    @property
    def task(self) -> Task:
        """What is learned."""
        return self.signature.learned_task

    def row_weights(self, y: Array) -> npt.NDArray[np.float64] | None:
        """How much each row of these classes counts, [N], 1 on average over the training rows; None: all alike."""
        return None if self.class_weights is None else self.class_weights[y]

    @property
    def n_classes(self) -> int:
        """Classes, or 0 for regression."""
        return len(self.signature.classes)


@dataclass(frozen=True, slots=True)
class Rule:
    """What has to be known of a model to judge its answers.

    `positive` is, of two classes, the one that precision, recall, F1 and the curves speak of. It is told from the
    probability `threshold` on; without one, and of more classes, the likeliest class is. `coverage` is the share of
    values that prediction intervals promise to hold. With `ordinal` classes are as far apart as their indices.
    """

    positive: int = 1
    threshold: float | None = None
    coverage: float | None = None
    ordinal: bool = False

    @classmethod
    def of(cls, signature: Signature, positive: int) -> "Rule":
        """Of a model that was trained here; a threshold's own class is the positive one."""
        found = signature.threshold
        if found is None:
            return cls(positive, coverage=signature.coverage, ordinal=signature.ordinal)
        return cls(signature.classes.index(found.label), found.probability)

    def labels(self, probabilities: Array) -> npt.NDArray[np.int64]:
        """Class indices [N] of probabilities [N, K], of which one is right."""
        if self.threshold is None or probabilities.shape[1] != 2:  # noqa: PLR2004 - two classes
            return np.asarray(probabilities.argmax(axis=1), np.int64)
        # In double precision, as serving compares.
        told = probabilities[:, self.positive].astype(np.float64) >= self.threshold
        return np.where(told, self.positive, 1 - self.positive).astype(np.int64)


PLAIN = Rule()


def rows_of(inputs: Inputs) -> int:
    """Rows of a batch; every tensor has the same number."""
    return len(next(iter(inputs.values())))


def take(inputs: Inputs, rows: npt.NDArray[np.int64] | slice) -> dict[str, npt.NDArray[Any]]:
    """The chosen rows of every tensor."""
    return {name: np.ascontiguousarray(value[rows]) for name, value in inputs.items()}
