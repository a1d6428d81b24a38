"""Cheaper layers: linear layers of low rank and ReLU in place of GELU, and the network learns its answers again."""

from collections.abc import Mapping
from typing import Any

from workers.automl.trial import Trial
from workers.compression.graphs import Model
from workers.compression.material import Material
from workers.compression.teaching import can_rebuild, check_network, in_time, rebuilt, soft_data, trained_here
from workers.families.base import Fitted

_EPOCHS = 0.5  # times the full model's
_RATE = 0.5  # times its learning rate: most of what the layers know is still there


def cheaper_layers(material: Material, *, gelu: bool, products: bool) -> dict[str, Mapping[str, Any]]:
    """Steps by name, of a network that can be made again and has GELUs, or large products."""
    if not can_rebuild(material):
        return {}
    found: dict[str, Mapping[str, Any]] = {}
    if gelu:
        found["ReLU"] = {"step": "cheapen", "relu": True, "energy": None}
    if products:
        found["rank 0.5"] = {"step": "cheapen", "relu": gelu, "energy": 0.5}
    return found


def cheaper_network(material: Material, model: Model, energy: float | None, *, relu: bool, deadline: float) -> Model:
    """The network that `model` was exported from with cheaper layers, fine-tuned by the full model's answers.

    Args:
        material: with the full model.
        model: as it was exported: the full model, or a shorter or a pruned one.
        energy: share of the squared singular values that linear layers keep; None: they stay.
        relu: take ReLU for every GELU.
        deadline: of the monotonic clock.

    Raises:
        Unreadable, ParityFailed: the network cannot be made from the graph.
        ValueError: no layer gets cheaper, or it is no network trained here.
        NoTime: it was not finished before `deadline`.
        Stopped: the job was asked to stop.
    """
    from workers.training.cheaper import cheapen  # noqa: PLC0415 - it loads torch, which trees do without

    check_network(material)
    origin, _ = trained_here(material)
    epochs = max(1, round(origin.training.epochs * _EPOCHS))
    needed = origin.seconds * epochs / origin.training.epochs

    def teach(job: Trial) -> Fitted:
        learner, fitted = rebuilt(material, model, job)
        if not cheapen(fitted.network, energy, relu=relu):
            raise ValueError("no layer gets cheaper")
        return learner.teach(fitted, soft_data(material, epochs, _RATE), job)

    return in_time(material, f"cheaper-{energy}-{relu}", needed, deadline, teach)
