"""What a family is: it fits on typed arrays and gives back a model that predicts and exports itself."""

from collections.abc import Collection, Mapping
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


class Network(Family, Protocol):
    """A family whose networks can be made again from their graphs, and taught further. What `fit` gives is changed."""

    def rebuild(self, model: onnx.ModelProto, data: LearningData, job: JobContext) -> Any:  # noqa: ANN401 - its own kind
        """The trained model whose graph this is, or that of a smaller one that was made of it; `Unreadable` if not.

        Args:
            model: as `to_onnx` gave it.
            data: the rows that it has learnt from.
            job: whose published weights may be read.
        """

    def depth_of(self, model: onnx.ModelProto) -> int:
        """How many layers of one shape this graph's network has, if some can be left out, or 0."""

    def shorten(self, network: Any, keep: int, rank: int | None) -> None:  # noqa: ANN401 - torch's
        """Leave all but `keep` of them out, and let its table of words, if it has one, be one of this rank."""

    def teach(self, fitted: Any, data: LearningData, job: JobContext) -> Fitted:  # noqa: ANN401 - the same
        """Train it further, as `fit` does."""

    def teach_rounded(self, fitted: Any, operators: Collection[str], data: LearningData, job: JobContext) -> Fitted:  # noqa: ANN401 - the same
        """`teach` while layers round as these ONNX operators do in int8; batch norms end in their convolutions."""


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
