"""Quantization-aware fine-tuning: a network learns the full model's answers while its layers round as int8 does."""

from collections.abc import Sequence
from dataclasses import replace

from workers.automl.trial import Trial
from workers.compression.graphs import Model
from workers.compression.material import Material
from workers.compression.teaching import check_network, in_time, rebuilt, soft_data, trained_here
from workers.families.base import Fitted

_EPOCHS = 0.25  # times the full model's
_RATE = 0.1  # times its learning rate


def rounding_network(material: Material, model: Model, operators: Sequence[str], deadline: float) -> Model:
    """The network that `model` was exported from, in floating point, with weights that bear to be quantized.

    Args:
        material: with the full model, whose answers are learnt.
        model: as it was exported: the full model, or a pruned or a shorter one, or a student.
        operators: that are to be quantized.
        deadline: of the monotonic clock.

    Raises:
        ValueError: it is no network trained here.
        Unreadable, ParityFailed: the network cannot be made from the graph.
        NoTime: it was not finished before `deadline`.
        Stopped: the job was asked to stop.
    """
    check_network(material)
    origin, _ = trained_here(material)
    epochs = max(1, round(origin.training.epochs * _EPOCHS))

    def teach(job: Trial) -> Fitted:
        learner, fitted = rebuilt(material, model, job)
        data = soft_data(material, epochs, _RATE)
        # Blocks that are computed anew for the gradient would move their ranges a second time.
        once = data.training.model_copy(update={"gradient_checkpointing": False})
        return learner.teach_rounded(fitted, operators, replace(data, training=once), job)

    return in_time(material, "rounded", origin.seconds * epochs / origin.training.epochs, deadline, teach)
