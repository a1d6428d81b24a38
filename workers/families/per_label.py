"""Rows that may have several labels, by families that tell two classes apart: a model for each label, one graph."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from app.core.errors import InvalidData, InvalidSpec
from workers.context import JobContext, Stopped
from workers.export.graph import Graph
from workers.export.parity import check_parity
from workers.export.runtime import open_session, predict
from workers.families.base import Fitted
from workers.learning import Array, Inputs, LearningData, Part, rows_of, take
from workers.training.files import write_atomically

Fit = Callable[[LearningData, JobContext], Fitted]
MOST_LABELS = 100  # each may have hundreds of trees
_BEGINS, _ENDS = 0.1, 0.8  # the span of progress in which a family tells its own
_PROVEN_ROWS = 200  # of each label's model by itself; the whole graph goes through the gate of every family


def fit_labels(fit: Fit, data: LearningData, job: JobContext) -> "FittedLabels":
    """A model for each label that some training rows have and some have not; others are always or never told.

    An attempt that was ended goes on after the last whole label, and within a label as `fit` does.

    Raises:
        InvalidSpec: there are too many labels for a model each.
        InvalidData: no label tells training rows apart.
        Stopped: the job is to stop.
    """
    if data.n_classes > MOST_LABELS:
        msg = f"a model is learnt for each label, of at most {MOST_LABELS}; there are {data.n_classes}, so use linear"
        raise InvalidSpec.at("family", msg=msg)
    shares = data.train.y.mean(axis=0)
    learnt = [label for label, share in enumerate(shares.tolist()) if 0 < share < 1]
    if not learnt:
        raise InvalidData.at("target", msg="every training row has the same labels; there is nothing to learn")
    models = {}
    for at, label in enumerate(learnt):
        if job.should_stop():
            raise Stopped
        models[label] = _learn(fit, data, _LabelContext(job, data.signature.classes[label], label, at, len(learnt)))
    return FittedLabels(data, models, np.asarray(shares == 1, np.float32))


class _LabelContext(JobContext):
    """The job as the model of one label sees it: its own folder in the checkpoint, and its part of the progress."""

    def __init__(self, job: JobContext, name: str, label: int, at: int, count: int) -> None:
        super().__init__(job.id, job.kind, job.attempt, job.spec, job.folder, job.events, job.stop)
        self.job, self.name, self.label, self.at, self.count = job, name, label, at, count

    @property
    def checkpoint(self) -> Path:
        """Within the job's, so that it is kept with it."""
        return self.job.checkpoint / f"label-{self.label}"

    def progress(self, fraction: float, step: str, eta_s: float | None = None) -> None:  # noqa: ARG002 - of this label alone
        """As far as this label brings the job."""
        done = min(max((fraction - _BEGINS) / (_ENDS - _BEGINS), 0.0), 1.0)
        self.job.progress(_BEGINS + (_ENDS - _BEGINS) * (self.at + done) / self.count, f"{self.name}: {step}")

    def metric(self, name: str, step: int, value: float) -> None:
        """Not told: the curves of many labels cannot be told apart."""

    def log(self, message: str, level: str = "info") -> None:
        """Of which label a message is."""
        self.job.log(f"{self.name}: {message}", level)

    def checkpointed(self) -> None:
        """As the job."""
        self.job.checkpointed()

    def should_stop(self) -> bool:
        """As the job."""
        return self.job.should_stop()


@dataclass(frozen=True)
class _Model:
    """A graph that answers the probabilities of no and yes [N, 2], and the trained model if it is of this attempt."""

    graph: bytes
    facts: Mapping[str, Any]
    threads: int
    trained: Fitted | None = None

    def predict(self, inputs: Inputs) -> Array:
        """The probability of the label [N], of an earlier attempt by its graph, which was proven then."""
        answers = predict(self._session, inputs) if self.trained is None else self.trained.predict(inputs)
        return np.asarray(answers[:, 1])

    @cached_property
    def _session(self) -> Any:  # noqa: ANN401 - an ONNX Runtime session
        return open_session(self.graph, self.threads)


def _learn(fit: Fit, data: LearningData, context: _LabelContext) -> _Model:
    graph, facts = (context.job.checkpoint / f"label-{context.label}.{kind}" for kind in ("onnx", "json"))
    if facts.exists():
        return _Model(graph.read_bytes(), json.loads(facts.read_text()), data.threads)
    fitted = fit(_two_classes(data, context.label), context)
    model = _Model(fitted.to_onnx().SerializeToString(), fitted.facts(), data.threads, fitted)
    check_parity(model.graph, fitted.predict, _sample(data), "classification", data.threads)
    context.job.checkpoint.mkdir(parents=True, exist_ok=True)
    write_atomically(graph, model.graph)
    write_atomically(facts, json.dumps(model.facts).encode())
    shutil.rmtree(context.checkpoint, ignore_errors=True)
    context.checkpointed()
    return model


def _two_classes(data: LearningData, label: int) -> LearningData:
    """The same rows, which have the label or not."""
    output = replace(data.signature.outputs[0], shape=(-1, 2))
    signature = replace(data.signature, task="classification", classes=("no", "yes"), separator="", outputs=(output,))
    parts = [Part(part.inputs, part.y[:, label].astype(np.int64)) for part in (data.train, data.validation)]
    return replace(data, signature=signature, train=parts[0], validation=parts[1], metric="log_loss")


def _sample(data: LearningData) -> Inputs:
    part = data.validation if len(data.validation) else data.train
    return take(part.inputs, slice(0, _PROVEN_ROWS))


@dataclass(frozen=True, slots=True)
class FittedLabels:
    """A model by label, and what is said of others: 1 if all training rows have the label, else 0 [K]."""

    data: LearningData
    models: Mapping[int, _Model]
    always: npt.NDArray[np.float32]

    def predict(self, inputs: Inputs) -> Array:
        """The probability of each label [N, K]."""
        answers = np.tile(self.always.astype(np.float64), (rows_of(inputs), 1))
        for label, model in self.models.items():
            answers[:, label] = model.predict(inputs)
        return answers

    def to_onnx(self) -> onnx.ModelProto:
        """All models in one graph over the same inputs."""
        graph, signature = Graph(), self.data.signature
        second = graph.constant([1], np.int64)
        columns = []
        for label, model in self.models.items():
            answer = graph.include(onnx.load_from_string(model.graph), f"label{label}")
            columns.append(graph.add("Gather", answer, second, axis=1))
        told = columns[0] if len(columns) == 1 else graph.add("Concat", *columns, axis=1)
        places = np.eye(len(self.always))[list(self.models)]  # exact: each column has one 1
        placed = graph.add("MatMul", told, graph.constant(places, np.float32))
        graph.add("Add", placed, graph.constant(self.always, np.float32), output=signature.outputs[0].name)
        return graph.model(signature.inputs, signature.outputs)

    def facts(self) -> dict[str, Any]:
        """Those of each label's model."""
        return {"labels": {self.data.signature.classes[label]: dict(m.facts) for label, m in self.models.items()}}
