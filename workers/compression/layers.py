"""Layer dropping: an encoder of some of the full model's layers learns its answers again."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from app.specs.families import family
from workers.automl.trial import Trial
from workers.compression.graphs import Model
from workers.compression.material import Material
from workers.compression.teaching import in_time, labelled, same_answers, soft_data, trained_here
from workers.families.base import Fitted, load_family

if TYPE_CHECKING:  # it loads torch, which jobs without networks do without
    from workers.families.transformer import Network, Transformer

_RATE = 0.5  # times the full model's learning rate: the layers know much already, but not to stand next to each other
_NARROWER = 4  # times narrower the table of words becomes, if it does


def shorter_encoders(material: Material) -> dict[str, Mapping[str, Any]]:
    """Steps by name, the shortest first; none of other networks, of published weights and of one layer."""
    origin = material.origin
    if origin is None or origin.family != "transformer" or origin.params.get("weights"):
        return {}
    depth, rank = origin.params["depth"], max(8, origin.params["width"] // _NARROWER)
    found: dict[str, Mapping[str, Any]] = {}
    for keep in sorted({max(1, depth // 2), max(1, depth // 3), 1} - {depth}):  # what takes least time to teach
        for narrow in (rank, None):
            name = f"{keep} of {depth} layers" + (f", table of {rank}" if narrow else "")
            found[name] = {"step": "drop_layers", "keep": keep, "table_rank": narrow}
    return found


def short_encoder(material: Material, keep: int, table_rank: int | None, deadline: float) -> Model:
    """The encoder with so many of its layers, and a table of this rank, fine-tuned by the full model's answers.

    Raises:
        Unreadable, ParityFailed: the network cannot be made from the graph.
        NoTime: it was not finished before `deadline` of the monotonic clock.
        Stopped: the job was asked to stop.
    """
    origin, _ = trained_here(material)
    needed = origin.seconds * keep / origin.params["depth"]

    def teach(job: Trial) -> Fitted:
        learner = cast("Transformer", load_family(family(origin.family), origin.params))
        model = material.graph()
        fitted = learner.rebuild(model, labelled(material, material.prepared.split.train), job)
        same_answers(material, model, fitted)
        network = cast("Network", fitted.network)
        network.shorten(keep, table_rank)
        return learner.teach(fitted.reader, lambda: network, soft_data(material, origin.training.epochs, _RATE), job)

    return in_time(material, f"layers-{keep}-{table_rank}", needed, deadline, teach)
