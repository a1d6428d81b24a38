"""Layer dropping: an encoder of some of the full model's layers learns its answers again."""

from collections.abc import Mapping
from typing import Any

from workers.automl.trial import Trial
from workers.compression.graphs import Model
from workers.compression.material import Material
from workers.compression.teaching import (
    can_rebuild,
    check_network,
    in_time,
    network_family,
    rebuilt,
    soft_data,
    trained_here,
)
from workers.families.base import Fitted

_FAMILIES = frozenset({"transformer", "vit"})
_RATE = 0.5  # times the full model's learning rate: the layers know much already, but not to stand next to each other
_NARROWER = 4  # times narrower the table of words becomes, if it does


def shorter_encoders(material: Material, graph: Model) -> dict[str, Mapping[str, Any]]:
    """Steps by name, what takes least time to teach first; none of other networks, and of one layer."""
    if not can_rebuild(material) or trained_here(material)[0].family not in _FAMILIES:
        return {}
    depth = network_family(material).depth_of(graph)
    tables: list[int | None] = [None]
    if (width := _words_width(graph)) is not None:
        tables = [max(8, int(width) // _NARROWER), None]
    found: dict[str, Mapping[str, Any]] = {}
    for keep in sorted({keep for keep in (depth // 2, depth // 3, 1) if 0 < keep < depth}):
        for narrow in tables:
            name = f"{keep} of {depth} layers" + (f", table of {narrow}" if narrow else "")
            found[name] = {"step": "drop_layers", "keep": keep, "table_rank": narrow}
    return found


def short_encoder(material: Material, keep: int, table_rank: int | None, deadline: float) -> Model:
    """The encoder with so many of its layers, and a table of this rank, fine-tuned by the full model's answers.

    Raises:
        ValueError: it is no encoder of more layers, or was not trained here.
        Unreadable, ParityFailed: the network cannot be made from the graph.
        NoTime: it was not finished before `deadline` of the monotonic clock.
        Stopped: the job was asked to stop.
    """
    check_network(material, _FAMILIES)
    origin, _ = trained_here(material)
    model = material.graph()
    depth = network_family(material).depth_of(model)
    if keep >= depth:
        raise ValueError(f"the network has {depth} layers; keep fewer")
    needed = origin.seconds * keep / depth

    def teach(job: Trial) -> Fitted:
        learner, fitted = rebuilt(material, model, job)
        learner.shorten(fitted.network, keep, table_rank)
        return learner.teach(fitted, soft_data(material, origin.training.epochs, _RATE), job)

    return in_time(material, f"layers-{keep}-{table_rank}", needed, deadline, teach)


def _words_width(graph: Model) -> int | None:
    """Numbers that stand for a word in the table of words, if the network reads words."""
    tables = (tensor.dims[1] for tensor in graph.graph.initializer if tensor.name.endswith("word_embeddings.weight"))
    return next(tables, None)
