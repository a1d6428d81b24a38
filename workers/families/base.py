"""What a family is: it fits on typed arrays and gives back a model that predicts and exports itself."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol, cast, runtime_checkable

import onnx

from app.core.errors import Misconfigured
from app.specs.families import Family as Descriptor
from workers.context import JobContext
from workers.families.evidence import Evidence
from workers.learning import Array, Inputs, LearningData


class Fitted(Protocol):
    """A trained model."""

    def predict(self, inputs: Inputs) -> Array:
        """Probabilities [N, K] or values [N] in the target's unit, computed by the training library."""

    def to_onnx(self) -> onnx.ModelProto:
        """The same function as a graph with the signature's inputs and outputs."""

    def facts(self) -> dict[str, Any]:
        """What the model card says about the fit, JSON-ready."""


@runtime_checkable
class HoldsOut(Protocol):
    """A trained model that answers for rows it has not learned from, because parts of it left them out."""

    def held_out(self) -> tuple[Array, Array]:
        """Targets [N], in their own unit, and answers to these rows, as `predict` gives them."""


@runtime_checkable
class HasEvidence(Protocol):
    """A trained model that states how likely its training rows are."""

    def evidence(self) -> Evidence | None:
        """In nats; None where this fit has no likelihood, or one that takes too long."""


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
