"""Networks that take the place of imported models of pictures, taught by what these answer."""

import shutil
from dataclasses import replace
from math import ceil, prod
from time import monotonic

import numpy as np
import onnx

from app.core.signature import Signature, Task, Tensor
from app.specs.families import family
from app.specs.mapping import picture_tensor
from app.specs.training import OptimizerSpec, TrainingSpec
from workers.automl.trial import Trial
from workers.compression.foreign import in_its_place, is_told, labels_told
from workers.compression.graphs import Model
from workers.compression.material import Material
from workers.compression.teaching import WATCHED, in_time, job_of, watching
from workers.context import JobContext
from workers.evaluation.answers import Answering
from workers.export.graph import Graph
from workers.families.base import Fitted, load_family
from workers.learning import Array, LearningData, Part, take

_READ = frozenset({"UINT8", "FP16", "FP32", "FP64"})
_FAMILY = "resnet"  # it makes pictures of any size small before it looks closely
NETWORKS = {"small": {"widths": [16, 32, 64], "depth": 1}, "medium": {"widths": [32, 64, 128], "depth": 1}}
_STEPS, _BATCH, _RATE = 4000, 128, 0.004
_EPOCHS = (3, 40)  # least and most, however few rows there are
_TIMED = (4, 32)  # batches that tell how long it takes
_MOST_BYTES, _MOST_ROWS = 1 << 30, 100_000  # of pictures that it learns from
_PART = 256  # pictures that are scaled at once
_WHITE, _SMALLEST = 255.0, 1e-12


def is_picture(signature: Signature, answering: Answering, task: Task) -> bool:
    """Whether a row is a picture of one size, and everything that is answered follows from its class."""
    tensor = picture_tensor(signature)
    return (
        task == "classification"
        and tensor is not None
        and tensor.datatype in _READ
        and is_told(signature, answering, task)
    )


def picture_student(material: Material, size: str, deadline: float) -> Model:
    """A network with the full model's input and outputs, taught by its answers to training rows.

    Raises:
        ValueError: it is no such model, or it is not known how to say all that it says.
        NoTime: it was not finished before `deadline` of the monotonic clock.
        Stopped: the job was asked to stop.
    """
    signature, judge = material.prepared.signature, material.judge
    if material.origin is not None or not is_picture(signature, judge.answering, judge.task):
        raise ValueError("only of an imported model of pictures of one size that are told one class")
    tensor = signature.inputs[0]
    most = min(_MOST_ROWS, max(_BATCH, _MOST_BYTES // prod(tensor.shape[1:])))
    rows, source = material.learnt()[:most], material.prepared.inputs[tensor.name]
    answers = material.once("pictures", lambda: material.answers_to(rows, watching(material, deadline)))
    labels = labels_told(material, rows, answers)  # before anything is taught: it may not be known
    parts = material.parts(rows)
    scale, pixels = _Bytes(tensor, source[parts[0]]), np.empty((len(rows), *tensor.shape[1:]), np.uint8)
    for at, part in enumerate(parts):
        pixels[at * len(parts[0]) :][: len(part)] = scale.of(source[part])
    data = _data(material, pixels, answers.astype(np.float32))
    needed = _seconds(material, data, size)
    student = in_time(
        material, f"student-{size}", needed, deadline, lambda job: _fit(data, size, job),
        lambda inputs: {"image": scale.of(inputs[tensor.name])},
    )  # fmt: skip
    return in_its_place(student, material, labels, scale.to_nodes)


def _seconds(material: Material, data: LearningData, size: str) -> float:
    """How long it takes to teach the network, by epochs of few rows; without what a start takes."""
    few, more = _TIMED
    if len(data.train) <= more * _BATCH:
        return 0.0
    spent = [_epoch(material, data, size, batches) for batches in (few, few, more)]  # the first one loads much
    return (spent[2] - spent[1]) / (more - few) * data.training.epochs * len(data.train) / _BATCH


def _epoch(material: Material, data: LearningData, size: str, batches: int) -> float:
    """Seconds."""
    learn, watch = (
        Part(take(part.inputs, slice(0, most * _BATCH)), part.y[: most * _BATCH])
        for part, most in ((data.train, batches), (data.validation, 1))
    )
    few = replace(data, train=learn, validation=watch, training=data.training.model_copy(update={"epochs": 1}))
    trial, begun = Trial.of(job_of(material), f"timed-{size}", float("inf")), monotonic()
    _fit(few, size, trial)
    shutil.rmtree(trial.checkpoint, ignore_errors=True)
    return monotonic() - begun


def _fit(data: LearningData, size: str, job: JobContext) -> Fitted:
    params = family(_FAMILY).validate(NETWORKS[size]).model_dump(mode="json")
    return load_family(family(_FAMILY), params).fit(data, job)


def _data(material: Material, pictures: Array, answers: Array) -> LearningData:
    """Pictures as bytes with the full model's probabilities; a share of them is watched."""
    classes = answers.shape[1]
    signature = Signature(
        "classification", (Tensor("image", "UINT8", (-1, *pictures.shape[1:])),),
        (Tensor("probabilities", "FP32", (-1, classes)),), (), tuple(map(str, range(classes))),
    )  # fmt: skip
    least, most = _EPOCHS
    training = TrainingSpec(
        epochs=min(most, max(least, ceil(_STEPS * _BATCH / len(pictures)))), batch_size=_BATCH, seed=material.seed,
        optimizer=OptimizerSpec(lr=_RATE),
    )  # fmt: skip
    held = max(1, round(len(pictures) * WATCHED))
    watch, learn = (Part({"image": pictures[s]}, answers[s]) for s in (slice(held), slice(held, None)))
    return LearningData(signature, learn, watch, training=training, threads=material.threads)


class _Bytes:
    """Pictures as bytes: 0 is the least and 255 the largest number of a channel in the pictures that were given."""

    def __init__(self, tensor: Tensor, pictures: Array) -> None:
        self._as_they_are = tensor.datatype == "UINT8"
        if not self._as_they_are:
            low, high = (side(axis=(0, 2, 3), keepdims=True)[0] for side in (pictures.min, pictures.max))  # [C, 1, 1]
            self._low = low.astype(np.float32)
            self._scale = _WHITE / np.maximum(high.astype(np.float32) - self._low, _SMALLEST)

    def of(self, pictures: Array) -> Array:
        """UINT8 [N, C, H, W]."""
        if self._as_they_are:
            return pictures
        found = np.empty(pictures.shape, np.uint8)
        for at in range(0, len(found), _PART):
            scaled = (pictures[at : at + _PART].astype(np.float32) - self._low) * self._scale
            found[at : at + _PART] = np.rint(np.clip(scaled, 0, _WHITE))
        return found

    def to_nodes(self, graph: Graph, name: str) -> str:
        """The same as nodes."""
        if self._as_they_are:
            return name
        value = graph.add("Cast", name, to=onnx.TensorProto.FLOAT)
        value = graph.add("Sub", value, graph.constant(self._low, np.float32))
        value = graph.add("Mul", value, graph.constant(self._scale, np.float32))
        ends = [graph.constant(end, np.float32) for end in (0.0, _WHITE)]
        return graph.add("Cast", graph.add("Round", graph.add("Clip", value, *ends)), to=onnx.TensorProto.UINT8)
