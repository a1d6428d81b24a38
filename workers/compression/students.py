"""Distillation: a smaller model that learns from the full one's answers to training rows."""

import time
from collections.abc import Callable, Mapping
from math import ceil
from typing import Any

import numpy as np

from app.core.errors import AimassError
from app.specs.augment import AugmentSpec
from app.specs.families import family
from app.specs.training import TrainingSpec
from workers.automl.trial import Trial
from workers.compression.graphs import Model
from workers.compression.material import Material, Origin
from workers.context import Stopped
from workers.export.runtime import open_session, predict
from workers.families.base import load_family
from workers.families.student import fit_student
from workers.learning import Array, Inputs, LearningData, Part, Standard, take

# Boosting rounds and leaves of students of tables; later rounds can still be left out.
BOOSTERS: dict[str, dict[str, int]] = {
    "small": {"rounds": 100, "leaves": 15},
    "medium": {"rounds": 300, "leaves": 31},
    "large": {"rounds": 600, "leaves": 31},
}
_RATE = 0.1
_MOST_ROWS = 100_000  # that a student of a table learns from
_COPIES = 4  # made-up rows for each real one
_SWAPPED = 0.3  # of a made-up row's cells are another row's
_LONGER = 3  # times the full model's epochs: a student learns more from soft answers, and each epoch is cheaper
_SHARE = 0.5  # of the time that is left may go to one network
SIZES = {"slim": 0.6, "half": 0.5, "quarter": 0.25}  # of widths or depth
_WATCHED = 0.1  # of the training rows end a network's training
Params = Mapping[str, Any]


class NoTime(AimassError):
    """A student was not finished in time."""


def boosted_student(material: Material, size: str) -> Model:
    """Boosted trees that take the same raw columns, taught by the full model's answers to real and made-up rows.

    A made-up row is a training row some of whose cells are those of other training rows, each column by itself.
    """
    prepared = material.prepared
    rng = np.random.default_rng(material.seed)
    rows = material.learnt()[:_MOST_ROWS]
    real = take(prepared.inputs, rows)
    copies = max(0, min(_COPIES, _MOST_ROWS // len(rows) - 1))
    inputs = {
        name: np.concatenate([value, *(_mixed(value, rng) for _ in range(copies))]) for name, value in real.items()
    }
    data = _data(material, Part(real, prepared.y[rows]), TrainingSpec(seed=material.seed))
    answers = _teacher(material, inputs, data.standard)
    student = fit_student(data, inputs, answers, **BOOSTERS[size], learning_rate=_RATE)
    return student.to_onnx()


def network_student(material: Material, size: str, deadline: float) -> Model:
    """A network of the same family with fewer weights, taught by the full model's answers to training rows.

    Raises:
        NoTime: it was not finished before `deadline` of the monotonic clock.
        Stopped: the job was asked to stop.
    """
    origin, job, prepared = material.origin, material.job, material.prepared
    if origin is None or job is None:
        raise ValueError("only a model that was trained here has students")
    deadline = _deadline(origin, size, deadline)
    rows = material.learnt()
    held = max(1, round(len(rows) * _WATCHED))
    changed = {"epochs": origin.training.epochs * _LONGER, "augment": _gentle(origin.training.augment)}
    training = origin.training.model_copy(
        update={**changed, "seed": material.seed, "freeze": None, "class_weight": None, "devices": 1}
    )
    everything = _data(material, Part({}, prepared.y[rows]), training)
    learn, watch = (_taught(material, some, everything.standard) for some in (rows[held:], rows[:held]))
    data = LearningData(
        everything.signature, learn, watch, everything.standard, training, material.threads, metric=everything.metric
    )
    params = family(origin.family).validate({**origin.params, **smaller(origin.family, origin.params)[size]})
    learner = load_family(family(origin.family), params.model_dump(mode="json"))
    try:
        return learner.fit(data, Trial.of(job, f"student-{size}", deadline)).to_onnx()
    except Stopped:
        if job.should_stop():
            raise
        raise NoTime("the student was not finished in its share of the time; raise time_limit_s") from None


def _deadline(origin: Origin, size: str, deadline: float) -> float:
    """Of one student, which must not take all the time. NoTime if it would hardly be finished by then."""
    left = deadline - time.monotonic()
    needed = origin.seconds * SIZES[size] ** 2 * _LONGER  # what follows from widths; of depth alone it is more
    if needed > left * _SHARE:
        raise NoTime(f"a student takes about {needed:.0f} s, too much of the {left:.0f} s left; raise time_limit_s")
    return time.monotonic() + left * _SHARE if left < float("inf") else deadline


def smaller(name: str, params: Params) -> dict[str, Params]:
    """Parameters of students by size, for families whose networks have a size."""
    make = None if params.get("weights") else _SMALLER.get(name)  # published networks come in one size
    found = {size: make(params, share) for size, share in SIZES.items()} if make else {}
    return {size: changed for size, changed in found.items() if any(params.get(n) != v for n, v in changed.items())}


def can_teach(material: Material) -> bool:
    """Whether a row's answer is one class or one value, which is what students learn."""
    return material.judge.task in {"classification", "regression"} and not material.prepared.signature.coverage


def can_boost(material: Material) -> bool:
    """Whether rows are tables of numbers and categories, as trees read them."""
    signature = material.prepared.signature
    tabular = {tensor.name for tensor in signature.inputs} <= {"numeric", "categorical"} and bool(signature.columns)
    return tabular and can_teach(material)


def _data(material: Material, train: Part, training: TrainingSpec) -> LearningData:
    standard = Standard.of(train.y) if material.judge.task == "regression" else Standard()
    if material.judge.task == "regression":
        train = Part(train.inputs, standard.shrink(train.y))
    signature = material.prepared.signature
    return LearningData(signature, train, train, standard, training, material.threads)


def _taught(material: Material, rows: Array, standard: Standard) -> Part:
    inputs = take(material.prepared.inputs, rows)
    return Part(inputs, _teacher(material, inputs, standard).astype(np.float32))


def _teacher(material: Material, inputs: Inputs, standard: Standard) -> Array:
    """Probabilities [N, K], or standardised values [N]."""
    raw = predict(
        open_session(material.model, material.threads), inputs, material.batch, material.judge.answering.output
    )
    answers = material.judge.answering.read(raw).astype(np.float64)
    return standard.shrink(answers) if material.judge.task == "regression" else answers


def _mixed(values: Array, rng: np.random.Generator) -> Array:
    """Rows [N, n] some of whose cells come from the same column of another row."""
    rows, columns = values.shape
    source = np.where(
        rng.random((rows, columns)) < _SWAPPED, rng.integers(0, rows, (rows, columns)), np.arange(rows)[:, None]
    )
    return values[source, np.arange(columns)]


def _gentle(augment: AugmentSpec | None) -> AugmentSpec | None:
    """Without blends, which need one label a row."""
    return None if augment is None else augment.model_copy(update={"mixup": 0.0, "cutmix": 0.0})


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
