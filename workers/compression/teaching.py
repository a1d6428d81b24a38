"""What every smaller network has in common: it learns the full model's answers to training rows, if there is time."""

import shutil
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from app.core.errors import AimassError
from app.specs.augment import AugmentSpec
from app.specs.families import family
from workers.automl.trial import Trial
from workers.compression.graphs import Model
from workers.compression.material import Material, Origin
from workers.context import JobContext, Stopped
from workers.export.parity import MIN_ROWS, check_parity
from workers.families.base import Fitted, Network, load_family
from workers.learning import Array, Inputs, LearningData, Part, Standard, take

_NETWORKS = frozenset({"cnn", "resnet", "mobilenet", "convnext", "vit", "transformer"})  # that are read back
WATCHED = 0.1  # of the training rows end a network's training
_WHOLE = 0.1  # times the rate of a network most of whose weights were not to learn
_SHARE = 0.5  # of the time that is left may go to one network
_LABELS = 0.5  # how much the rows' own classes count beside the full model's answers, which are right less often


class NoTime(AimassError):
    """A network was not finished in time."""


def job_of(material: Material) -> JobContext:
    """That the model is compressed by. ValueError if there is none."""
    if material.job is None:
        raise ValueError("only a job teaches")
    return material.job


def trained_here(material: Material) -> tuple[Origin, JobContext]:
    """How the full model was trained, and the job. ValueError if it was not trained here."""
    if material.origin is None or material.job is None:
        raise ValueError("only of a model that was trained here")
    return material.origin, material.job


def can_teach(material: Material) -> bool:
    """Whether a row's answer is one class or one value, which is what students learn."""
    return material.judge.task in {"classification", "regression"} and not material.prepared.signature.coverage


def can_rebuild(material: Material) -> bool:
    """Whether the network can be made again from its graph, and be taught."""
    known = material.origin is not None and material.origin.family in _NETWORKS
    return known and material.job is not None and can_teach(material)


def check_network(material: Material, families: frozenset[str] = _NETWORKS) -> None:
    """ValueError if the full model is none of these families that can be made again from its graph."""
    if not can_rebuild(material) or trained_here(material)[0].family not in families:
        raise ValueError(f"only of {', '.join(sorted(families))} trained here that tell one class or one value")


def network_family(material: Material) -> Network:
    """That the full model is of."""
    origin, _ = trained_here(material)
    return cast("Network", load_family(family(origin.family), origin.params))  # _NETWORKS are


def rebuilt(material: Material, model: Model, job: JobContext) -> tuple[Network, Any]:
    """The family, and the trained network that `model` was exported from, which answers as it does.

    Raises:
        Unreadable, ParityFailed: it cannot be made from the graph.
        InvalidSpec: the published weights that it began with are no longer there.
    """
    learner = network_family(material)
    fitted = learner.rebuild(model, labelled(material, material.learnt()), job)
    same_answers(material, model, fitted)
    return learner, fitted


def watching(material: Material, deadline: float, what: str = "asking the full model") -> Callable[[], None]:
    """A check to be called now and then: NoTime after half of the time until `deadline`, Stopped if the job is to."""
    job, end = material.job, time.monotonic() + (deadline - time.monotonic()) * _SHARE

    def check() -> None:
        if job is not None and job.should_stop():
            raise Stopped
        if time.monotonic() > end:
            raise NoTime(f"{what} takes too much of the time that was left; raise time_limit_s")

    return check


def soft_data(material: Material, epochs: int, rate: float = 1.0) -> LearningData:
    """Training rows with the full model's answers in place of labels, of classes half and half; a share is watched.

    Args:
        material: with the full model.
        epochs: to learn for.
        rate: times the full model's learning rate; one that was to be found is found anew.
    """
    origin, _ = trained_here(material)
    spec = origin.training
    optimizer = spec.optimizer
    if spec.freeze is not None or origin.params.get("lora") is not None:  # few weights had learnt; now all of them do
        rate *= _WHOLE
    if not isinstance(optimizer.lr, str):
        optimizer = optimizer.model_copy(update={"lr": optimizer.lr * rate})
    training = spec.model_copy(
        update={
            "epochs": epochs, "optimizer": optimizer, "augment": _gentle(spec.augment), "seed": material.seed,
            "freeze": None, "class_weight": None, "devices": 1,
        }
    )  # fmt: skip
    rows = material.learnt()
    held = max(1, round(len(rows) * WATCHED))
    standard = standard_of(material, rows)
    answers = material.told()
    if material.judge.task == "regression":
        answers = standard.shrink(answers)
    else:
        answers = (1 - _LABELS) * answers + _LABELS * np.eye(answers.shape[1])[material.prepared.y[rows]]
    inputs = material.prepared.inputs
    watch, learn = (
        Part(take(inputs, rows[s]), answers[s].astype(np.float32)) for s in (slice(held), slice(held, None))
    )
    return LearningData(material.prepared.signature, learn, watch, standard, training, material.threads)


def labelled(material: Material, rows: Array) -> LearningData:
    """Rows with their labels."""
    origin, _ = trained_here(material)
    y, standard = material.prepared.y[rows], standard_of(material, rows)
    part = Part(take(material.prepared.inputs, rows), standard.shrink(y) if material.judge.task == "regression" else y)
    return LearningData(
        material.prepared.signature, part, part, standard, origin.training, material.threads,
    )  # fmt: skip


def standard_of(material: Material, rows: Array) -> Standard:
    """Mean and spread of a regression's target."""
    return Standard.of(material.prepared.y[rows]) if material.judge.task == "regression" else Standard()


def in_time(
    material: Material, name: str, needed: float, deadline: float, teach: Callable[[Trial], Fitted],
    read: Callable[[Inputs], Inputs] = lambda inputs: inputs,
) -> Model:  # fmt: skip
    """What `teach` has taught, exported and compared with itself.

    Args:
        material: whose job is asked whether to stop.
        name: of the trial, a folder's.
        needed: seconds that it takes, about.
        deadline: of the monotonic clock. One network must not take all the time.
        teach: gets a trial that ends by then.
        read: the inputs of what is taught from those of the full model.

    Raises:
        NoTime: it would hardly be finished, or was not.
        ParityFailed: the exported network does not answer as the trained one.
        Stopped: the job was asked to stop.
    """
    job = job_of(material)
    left = deadline - time.monotonic()
    if needed > left * _SHARE:
        raise NoTime(f"it takes about {needed:.0f} s, too much of the {left:.0f} s left; raise time_limit_s")
    if left < float("inf"):
        deadline = time.monotonic() + left * _SHARE
    trial = Trial.of(job, name, deadline)
    try:
        fitted = teach(trial)
    except Stopped:
        if job.should_stop():
            raise
        raise NoTime("it was not finished in its share of the time; raise time_limit_s") from None
    finally:
        shutil.rmtree(trial.checkpoint.parent, ignore_errors=True)  # of trials within it too
    model = fitted.to_onnx()
    same_answers(material, model, fitted, read)
    return model


def same_answers(
    material: Material, model: Model, fitted: Fitted, read: Callable[[Inputs], Inputs] = lambda inputs: inputs
) -> None:
    """The parity gate, on training rows as `read` gives them. ParityFailed: they differ."""
    sample = read(take(material.prepared.inputs, material.learnt()[:MIN_ROWS]))
    spread = float(np.std(material.prepared.y)) if material.judge.task == "regression" else 0.0
    judge = material.judge
    check_parity(model.SerializeToString(), fitted.predict, sample, judge.task, judge.threads, spread, judge.rule)


def _gentle(augment: AugmentSpec | None) -> AugmentSpec | None:
    """Without blends, which need one label a row."""
    return None if augment is None else augment.model_copy(update={"mixup": 0.0, "cutmix": 0.0})
