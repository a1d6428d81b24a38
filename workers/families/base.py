"""What a family is: it fits on typed arrays and gives back a model that predicts and exports itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import onnx

from app.core.errors import Misconfigured
from app.core.signature import Signature, Task
from app.specs.families import Family as Descriptor
from app.specs.jobs import TrainingSpec
from workers.context import JobContext
from workers.export.runtime import Inputs

Array = npt.NDArray[Any]


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


@dataclass(frozen=True, slots=True)
class LearningData:
    """All that a family learns from. Test rows are not here."""

    signature: Signature
    train: Part
    validation: Part
    standard: Standard = Standard()
    bounds: tuple[Array, Array] | None = None  # clip the `numeric` tensor: low [n], high [n], infinite = open
    training: TrainingSpec = field(default_factory=TrainingSpec)
    threads: int = 1
    device: str = "cpu"

    @property
    def task(self) -> Task:
        """Classification or regression."""
        return self.signature.task

    @property
    def n_classes(self) -> int:
        """Classes, or 0 for regression."""
        return len(self.signature.classes)


class Fitted(Protocol):
    """A trained model."""

    def predict(self, inputs: Inputs) -> Array:
        """Probabilities [N, K] or values [N] in the target's unit, computed by the training library."""

    def to_onnx(self) -> onnx.ModelProto:
        """The same function as a graph with the signature's inputs and outputs."""

    def facts(self) -> dict[str, Any]:
        """What the model card says about the fit, JSON-ready."""


class Family(Protocol):
    """A family's implementation, made from its validated parameters.

    `devices` are what it can train on, of `cpu` and `cuda`.
    """

    devices: tuple[str, ...]

    def __init__(self, params: Mapping[str, Any]) -> None: ...

    def fit(self, data: LearningData, job: JobContext) -> Fitted:
        """Learn; raises `workers.context.Stopped` when the job was asked to stop."""


def load_family(descriptor: Descriptor, params: Mapping[str, Any]) -> Family:
    """Import `descriptor.implementation` and make it.

    Misconfigured when a plug-in names something that is not there.
    """
    module, _, attribute = descriptor.implementation.partition(":")
    try:
        make = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise Misconfigured(f"family '{descriptor.name}': cannot load {descriptor.implementation}: {error}") from error
    return cast("Family", make(params))
