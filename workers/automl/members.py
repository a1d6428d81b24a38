"""One candidate trained on every fold: models that leave each row out once, and their answers to those rows."""

import dataclasses
import io
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.core.errors import InvalidData, InvalidSpec
from app.specs.evaluation import default_metric
from app.specs.families import DataKind, family
from workers.automl.portfolio import BOOSTED, Candidate, training_of
from workers.automl.trial import ROOM, Trial
from workers.context import JobContext
from workers.evaluation.metrics import baseline, evaluate, positive_class
from workers.export.parity import check_parity
from workers.export.runtime import open_session, predict
from workers.families.base import load_family
from workers.learning import Array, Inputs, LearningData, Part, Rule, take
from workers.training.files import write_atomically

_MORE_ROUNDS = 1.1  # a model of all rows takes more of them than one that lacks a fold
_MOST_ROUNDS = 10_000  # that the families take
_PROVEN_ROWS = 200  # of each model by itself; the whole ensemble goes through the gate of every family


@dataclass(frozen=True, slots=True)
class Pool:
    """Training and validation rows together, divided into folds."""

    kind: DataKind
    data: LearningData
    inputs: Inputs
    y: Array
    folds: npt.NDArray[np.int64]  # of each row; -1 where it is in none

    @classmethod
    def of(cls, kind: DataKind, data: LearningData, count: int) -> "Pool":
        """Folds as the split allows; else of equal size, alike in their targets."""
        inputs = {
            name: np.concatenate([tensor, data.validation.inputs[name]]) for name, tensor in data.train.inputs.items()
        }
        y = np.concatenate([data.train.y, data.validation.y])
        if data.folds is not None:
            folds = data.folds(count)
            if folds.max() < 0:
                raise InvalidSpec.at("split", "validation", msg="models are chosen by validation rows; there are none")
            return cls(kind, data, inputs, y, folds)
        rng = np.random.default_rng(data.training.seed)
        alike = y if y.ndim == 1 else np.unique(y, axis=0, return_inverse=True)[1]
        order = np.lexsort((rng.random(len(y)), alike))
        blocks = rng.permuted(np.tile(np.arange(count), (len(y) // count + 1, 1)), axis=1)
        folds = np.empty(len(y), np.int64)
        folds[order] = blocks.ravel()[: len(y)]
        return cls(kind, data, inputs, y, folds)

    def check(self) -> None:
        """InvalidData where all rows but those of one fold are of one class, from which no model can learn."""
        if self.data.task != "classification":
            return
        for fold in range(self.count):
            there = np.unique(self.y[self.folds != fold])
            if len(there) == 1:
                label = self.data.signature.classes[there[0]]
                msg = f"of the rows that are not test rows, all of another class than '{label}' are in one fold"
                if self.data.folds is not None:
                    msg += ", since groups and times stay together; divide by another column, or at random"
                    raise InvalidData.at("split", "method", msg=msg)
                msg += "; add rows of that class, or train one family, which needs no folds"
                raise InvalidData.at("target", msg=msg)

    @property
    def count(self) -> int:
        """Folds that there are."""
        return int(self.folds.max()) + 1

    @property
    def targets(self) -> Array:
        """Class indices [N], values [N] in their own unit, or which labels a row has [N, K]."""
        return self.data.standard.restore(self.y) if self.data.task == "regression" else self.y

    def judgeable(self, job: JobContext) -> "Pool":
        """The same, by the usual metric where the wished one is undefined on the rows, as `mape` where one is zero."""
        data, y = self.data, self.targets
        rule = Rule(positive_class(y) if data.task == "classification" else 1, ordinal=data.signature.ordinal)
        guess = baseline(data.task, y, len(y), data.n_classes)
        if data.metric in evaluate(data.task, y, guess, rule=rule, names={data.metric}):
            return self
        usual = default_metric(data.task, data.n_classes)
        job.log(f"{data.metric} is undefined on these rows, so models are chosen by {usual}", level="warning")
        return dataclasses.replace(self, data=dataclasses.replace(data, metric=usual))

    def scored(self, folds: int) -> npt.NDArray[np.bool_]:
        """The rows of the first so many folds, [N]."""
        return (self.folds >= 0) & (self.folds < folds)

    def without(self, fold: int, candidate: Candidate) -> LearningData:
        """What a candidate learns from: all other folds, watched by this one."""
        rest, held = (self._part(np.flatnonzero(rows)) for rows in (self.folds != fold, self.folds == fold))
        training = training_of(self.kind, candidate, len(rest), self.data.training)
        return dataclasses.replace(self.data, train=rest, validation=held, training=training, streamed=None, folds=None)

    def all_rows(self, candidate: Candidate, turn: int) -> LearningData:
        """All rows, of which some are watched too, as families want it. `turn` varies the seed."""
        everything, held = self._part(np.arange(len(self.y))), self._part(np.flatnonzero(self.folds == 0))
        training = training_of(self.kind, candidate, len(everything), self.data.training)
        training = training.model_copy(update={"seed": training.seed + turn, "early_stopping": None})
        return dataclasses.replace(
            self.data, train=everything, validation=held, training=training, streamed=None, folds=None
        )

    def _part(self, rows: npt.NDArray[np.int64]) -> Part:
        return Part(take(self.inputs, rows), self.y[rows])


@dataclass(slots=True)
class Member:
    """A candidate's models, one a fold, as serialised graphs, and their answers to the rows that each left out.

    `again` are models of all rows, of one that was chosen.
    """

    candidate: Candidate
    graphs: list[bytes] = field(default_factory=list)
    answers: list[Array] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)  # that early stopping kept; 0 where there are none
    again: list[bytes] = field(default_factory=list)
    seconds: float = 0.0

    def learn(self, pool: Pool, fold: int, job: JobContext, deadline: float) -> None:
        """Train without a fold and answer it; or read from the checkpoint what an earlier attempt did.

        Raises:
            Stopped: the job is to stop, or the time is up.
            ParityFailed: the export does not answer as the trained model.
        """
        graph, answers, rounds = self._made(
            self.candidate, pool.without(fold, self.candidate), str(fold), job, deadline
        )
        self.graphs.append(graph)
        self.answers.append(answers)
        self.rounds.append(rounds)

    def relearn(self, pool: Pool, turn: int, job: JobContext, deadline: float) -> None:
        """Train a model of all rows, with a seed of its own. Raises as `learn`."""
        settled = self._settled()
        data = pool.all_rows(settled, turn)
        self.again.append(self._made(settled, data, f"all-rows-{turn}", job, deadline)[0])

    @property
    def relearns(self) -> int:
        """How many models of all rows it may have: none of trees whose rounds are not known, as those of each label."""
        stops = self.candidate.family in BOOSTED
        return 0 if stops and not all(self.rounds) else self.candidate.relearns

    @property
    def trees(self) -> int:
        """Of one boosted model of all rows; 0 of others."""
        classes = self.answers[0].shape[1] if self.answers[0].ndim > 1 else 1
        return self._rounds * (classes if classes > 2 else 1)  # noqa: PLR2004 - two classes need one tree

    @property
    def served(self) -> list[bytes]:
        """The models of all rows, or where there are none those of the folds."""
        return self.again or self.graphs

    @property
    def _rounds(self) -> int:
        """Of a model of all rows, as the folds have found; 0 where there are none."""
        return min(round(_MORE_ROUNDS * float(np.mean(self.rounds))), _MOST_ROUNDS)

    def _settled(self) -> Candidate:
        """With the rounds that the folds have found, where there are rounds."""
        if not self._rounds:
            return self.candidate
        return dataclasses.replace(self.candidate, params={**self.candidate.params, "n_estimators": self._rounds})

    def _made(
        self, candidate: Candidate, data: LearningData, name: str, job: JobContext, deadline: float
    ) -> tuple[bytes, Array, int]:
        """The graph, its answers to the rows that are watched, and its rounds; counts the seconds of training."""
        trial = Trial.of(job, f"{self.candidate.name}-{name}", deadline)
        saved = job.checkpoint / ROOM / f"{trial.name}.npz"
        if not saved.exists():
            started = time.monotonic()
            chosen = family(candidate.family)
            learner = load_family(chosen, chosen.validate(dict(candidate.params)).model_dump(mode="json"))
            fitted = learner.fit(data, trial)
            graph = fitted.to_onnx().SerializeToString()
            sample = take(data.validation.inputs, slice(0, _PROVEN_ROWS))
            check_parity(graph, fitted.predict, sample, data.task, data.threads, data.standard.scale)
            answers = predict(open_session(graph, data.threads), data.validation.inputs)
            rounds = int(fitted.facts().get("rounds", 0))
            _save(
                saved,
                graph=np.frombuffer(graph, np.uint8),
                answers=answers,
                rounds=rounds,
                seconds=time.monotonic() - started,
            )
            shutil.rmtree(trial.checkpoint, ignore_errors=True)
            job.checkpointed()
        with np.load(saved, allow_pickle=False) as file:
            self.seconds += float(file["seconds"])
            return file["graph"].tobytes(), file["answers"], int(file["rounds"])

    def out_of_fold(self, pool: Pool) -> Array:
        """Answers to the rows of the folds that were left out, in the order of the pool."""
        rows = [np.flatnonzero(pool.folds == fold) for fold in range(len(self.answers))]
        return np.concatenate(self.answers)[np.argsort(np.concatenate(rows))]


def _save(path: Path, **arrays: Any) -> None:  # noqa: ANN401 - arrays and numbers
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())
