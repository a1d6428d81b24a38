"""The words of learning: tensors by name, the rows to learn from, and what a family is given."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from app.core.signature import Signature, Task
from app.specs.jobs import TrainingSpec

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
    standardised values.
    """

    inputs: Inputs
    y: Array

    def __len__(self) -> int:
        return len(self.y)


class WholeRows(Protocol):
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
    whole: WholeRows | None = None  # all training rows, where `train` holds some of them

    @property
    def task(self) -> Task:
        """Classification or regression."""
        return self.signature.learned_task

    @property
    def n_classes(self) -> int:
        """Classes, or 0 for regression."""
        return len(self.signature.classes)


def rows_of(inputs: Inputs) -> int:
    """Rows of a batch; every tensor has the same number."""
    return len(next(iter(inputs.values())))


def take(inputs: Inputs, rows: npt.NDArray[np.int64] | slice) -> dict[str, npt.NDArray[Any]]:
    """The chosen rows of every tensor."""
    return {name: np.ascontiguousarray(value[rows]) for name, value in inputs.items()}
