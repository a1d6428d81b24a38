"""Structured pruning: channels leave a trained network in rounds, and it learns its answers again."""

from itertools import pairwise
from typing import TYPE_CHECKING, cast

from workers.automl.trial import Trial
from workers.compression.graphs import Model
from workers.compression.material import Material
from workers.compression.teaching import can_rebuild, check_network, in_time, labelled, rebuilt, soft_data, trained_here
from workers.families.base import Fitted

if TYPE_CHECKING:  # it loads torch, which jobs without networks do without
    from workers.families.pictures import Importance, Pictures

_FAMILIES = frozenset({"cnn", "resnet", "mobilenet", "convnext"})
# Of the channels that go, how many are gone after each round; and how long it then learns, as a share of the epochs.
_ROUNDS = ((0.5, 0.25), (1.0, 0.75))
_JUDGING = 1024  # rows that say what matters


def can_prune(material: Material) -> bool:
    """Whether the network can be made again from its version, and has channels."""
    return can_rebuild(material) and trained_here(material)[0].family in _FAMILIES


def pruned_network(material: Material, keep: float, importance: "Importance", deadline: float) -> Model:
    """The network with this share of the channels of each layer, fine-tuned by the full model's answers.

    Raises:
        ValueError: it has no channels, or was not trained here.
        Unreadable, ParityFailed: the network cannot be made from the graph.
        NoTime: it was not finished before `deadline` of the monotonic clock.
        Stopped: the job was asked to stop.
    """
    check_network(material, _FAMILIES)
    origin, _ = trained_here(material)
    epochs = origin.training.epochs
    left = [1 - (1 - keep) * gone for gone, _ in _ROUNDS]
    lengths = [max(1, round(epochs * share)) for _, share in _ROUNDS]
    needed = origin.seconds / epochs * sum(n * share**2 for n, share in zip(lengths, left, strict=True))

    def teach(job: Trial) -> Fitted:
        learner, fitted = rebuilt(material, material.graph(), job)
        hard = labelled(material, material.learnt()[:_JUDGING])
        for at, (before, after) in enumerate(pairwise([1.0, *left])):
            cast("Pictures", learner).prune(fitted.network, after / before, importance, hard)  # _FAMILIES are
            data = soft_data(material, lengths[at])
            fitted = learner.teach(fitted, data, Trial.of(job, f"{job.name}-{at}", job.deadline))
        return cast("Fitted", fitted)

    return in_time(material, f"pruned-{keep}-{importance}", needed, deadline, teach)
