"""Distillation: a smaller model that learns from the full one's answers to training rows."""

import time
from collections.abc import Callable, Mapping
from math import ceil
from typing import Any

import numpy as np

from app.specs.families import family
from app.specs.training import TrainingSpec
from workers.automl.trial import Trial
from workers.compression.foreign import in_its_place, labels_told
from workers.compression.foreign_tables import is_table, table_of, table_signature
from workers.compression.graphs import Model
from workers.compression.material import Material
from workers.compression.teaching import can_teach, in_time, soft_data, standard_of, trained_here, watching
from workers.families.base import Fitted, load_family
from workers.families.student import fit_student
from workers.learning import Array, Inputs, LearningData, Part, take

# Boosting rounds and leaves of students of tables; later rounds can still be left out.
BOOSTERS: dict[str, dict[str, int]] = {
    "small": {"rounds": 100, "leaves": 15},
    "medium": {"rounds": 300, "leaves": 31},
    "large": {"rounds": 600, "leaves": 31},
}
_RATE = 0.1
_GROWING_S = 120.0  # of which trees may have half, however little time is left: most are grown in seconds
_MOST_ROWS = 100_000  # that a student of a table learns from
_COPIES = 4  # made-up rows for each real one
_LOOKED_AT, _DISTINCT = 1000, 0.5  # rows that tell texts from categories, by their share of different values
_SWAPPED = 0.3  # of a made-up row's cells are another row's
_LONGER = 3  # times the full model's epochs: a student learns more from soft answers, and each epoch is cheaper
SIZES = {"slim": 0.6, "half": 0.5, "quarter": 0.25}  # of widths or depth
Params = Mapping[str, Any]


def boosted_student(material: Material, size: str, deadline: float = float("inf")) -> Model:
    """Boosted trees that take the same raw columns, taught by the full model's answers to real and made-up rows.

    A made-up row is a training row some of whose cells are those of other training rows, each column by itself.

    Raises:
        ValueError: its rows are no table, or it is not known how to say all that an imported model says.
        NoTime: they were not grown in half of the time until `deadline` of the monotonic clock, nor in a minute.
        Stopped: the job was asked to stop.
    """
    if not can_boost(material):
        raise ValueError("only of rows of numbers and categories that are told one class or one value")
    prepared, signature = material.prepared, material.prepared.signature
    rows = material.learnt()[:_MOST_ROWS]
    real = take(prepared.inputs, rows)
    inputs, answers = material.once("rows made up", lambda: _lesson(material, real))
    standard, y = standard_of(material, rows), prepared.y[rows]
    if material.judge.task == "regression":
        y, answers = standard.shrink(y), standard.shrink(answers)
    imported = signature.task == "inference"
    if imported:
        labels = labels_told(material, rows, answers[: len(rows)])  # before the trees are grown: it may not be known
        real, inputs = table_of(signature, real), table_of(signature, inputs)
        signature = table_signature(real, material.judge.task, answers.shape[1] if answers.ndim > 1 else 0)
    part, training = Part(real, y), TrainingSpec(seed=material.seed)
    data = LearningData(signature, part, part, standard, training, material.threads)
    watch = watching(material, max(deadline, time.monotonic() + _GROWING_S), "growing trees")
    student = fit_student(data, inputs, answers, **BOOSTERS[size], learning_rate=_RATE, watch=watch).to_onnx()
    return in_its_place(student, material, labels) if imported else student


def _lesson(material: Material, real: Inputs) -> tuple[Inputs, Array]:
    """Real and made-up rows, the real ones first, and what the full model says to them."""
    rng, count = np.random.default_rng(material.seed), len(next(iter(real.values())))
    copies = max(0, min(_COPIES, _MOST_ROWS // count - 1))
    inputs = {
        name: np.concatenate([value, *(_mixed(value, rng) for _ in range(copies))]) for name, value in real.items()
    }
    return inputs, material.answers(inputs)


def network_student(material: Material, size: str, deadline: float) -> Model:
    """A network of the same family with fewer weights, taught by the full model's answers to training rows.

    Raises:
        ValueError: the family has no network of this size, or it was not trained here.
        NoTime: it was not finished before `deadline` of the monotonic clock.
        Stopped: the job was asked to stop.
    """
    origin, _ = trained_here(material)
    needed = origin.seconds * SIZES[size] ** 2 * _LONGER  # what follows from widths; of depth alone it is more
    if size not in (sizes := smaller(origin.family, origin.params)) or not can_teach(material):
        raise ValueError(f"no {size} network of the family {origin.family} can be taught in its place")
    params = family(origin.family).validate({**origin.params, **sizes[size]})

    def teach(job: Trial) -> Fitted:
        data = soft_data(material, origin.training.epochs * _LONGER)
        return load_family(family(origin.family), params.model_dump(mode="json")).fit(data, job)

    return in_time(material, f"student-{size}", needed, deadline, teach)


def smaller(name: str, params: Params) -> dict[str, Params]:
    """Parameters of students by size, for families whose networks have a size."""
    make = None if params.get("weights") else _SMALLER.get(name)  # published networks come in one size
    found = {size: make(params, share) for size, share in SIZES.items()} if make else {}
    return {size: changed for size, changed in found.items() if any(params.get(n) != v for n, v in changed.items())}


def can_boost(material: Material) -> bool:
    """Whether rows are tables of numbers and categories, as trees read them."""
    signature, judge = material.prepared.signature, material.judge
    if signature.task == "inference":
        return is_table(signature, judge.answering, judge.task) and not _reads_texts(material)
    tabular = {tensor.name for tensor in signature.inputs} <= {"numeric", "categorical"} and bool(signature.columns)
    return tabular and can_teach(material)


def _reads_texts(material: Material) -> bool:
    """Whether a column holds another text in nearly every row, which is no category."""
    rows = material.learnt()[:_LOOKED_AT]
    columns = [
        column
        for array in take(material.prepared.inputs, rows).values()
        if array.dtype.kind in "OU"
        for column in array.reshape(len(rows), -1).T
    ]
    return any(len(set(column.tolist())) > _DISTINCT * len(rows) for column in columns)


def _mixed(values: Array, rng: np.random.Generator) -> Array:
    """Rows [N, …] some of whose cells come from the same column of another row."""
    flat = values.reshape(len(values), -1)
    rows, columns = flat.shape
    source = np.where(
        rng.random((rows, columns)) < _SWAPPED, rng.integers(0, rows, (rows, columns)), np.arange(rows)[:, None]
    )
    return flat[source, np.arange(columns)].reshape(values.shape)


def _widths(name: str, least: int = 8) -> Callable[[Params, float], Params]:
    return lambda params, share: {name: [max(least, round(width * share / 8) * 8) for width in params[name]]}


def _resnet(params: Params, share: float) -> Params:
    return {**_widths("widths")(params, share), "depth": ceil(params["depth"] * share)}


def _encoder(params: Params, share: float) -> Params:
    """Fewer layers of the same width."""
    return {"depth": ceil(params["depth"] * share)}


_SMALLER: dict[str, Callable[[Params, float], Params]] = {
    "cnn": _widths("channels"), "resnet": _resnet, "convnext": _widths("widths"),
    "mobilenet": lambda params, share: {"width": max(0.1, params["width"] * share)},
    "transformer": _encoder, "vit": _encoder,
}  # fmt: skip
