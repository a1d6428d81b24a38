"""The family `auto`: candidates are tried in turn within the time, then the best combination of them is kept."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from app.core.errors import AimassError, InvalidSpec
from app.specs.families import DataKind
from workers.automl.choose import Choice, choose
from workers.automl.combine import Combination
from workers.automl.members import Member, Pool
from workers.automl.portfolio import Candidate, portfolio
from workers.automl.score import scorer
from workers.automl.trial import ROOM
from workers.context import JobContext, Stopped
from workers.export.graph import Graph
from workers.export.runtime import open_session, predict
from workers.learning import Array, Inputs, LearningData
from workers.training.files import write_atomically

_STATE = "state.json"
_SHARE = 0.5  # of the time that is left may go to one candidate, so that a slow one does not take it all
_LONGER, _SURE = 1.5, 2  # times a fold's seconds, and how many, that are kept back for models of all rows
_MOST_TREES = 10_000  # boosted, of all rows: 1.5 ms for a row. Each that was chosen has one model, however large
_FIRST_SHARE = 0.25  # of the time for the first candidate; if all its folds need more, one fold has to do for all


class Auto:
    """The family over tables."""

    kind: DataKind = "tabular"
    devices = ("cpu", "cuda")

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = params

    def fit(self, data: LearningData, job: JobContext) -> "FittedAuto":
        """Try, choose, combine. An attempt that was ended goes on after the last model that it finished.

        Validation rows are learnt from too: every row is left out by one model of each candidate, which judges by it.
        """
        pool = Pool.of(self.kind, data, self.params["folds"])
        pool.check()
        pool = pool.judgeable(job)
        data = pool.data
        search = _Search(pool, self.params, job, _State.load(job))
        search.run()
        if not search.members:
            raise search.failure()
        job.progress(0.78, "choosing the best combination")
        folds = len(search.members[0].answers)
        scored, y = pool.scored(folds), pool.targets
        answers = [member.out_of_fold(pool) for member in search.members]
        choice = choose(
            answers, y[scored], data.metric, data.task, self.params["members"], data.training.seed,
            ordinal=data.signature.ordinal,
        )  # fmt: skip
        search.finish(choice.combination.weights)
        return FittedAuto.of(data, search, choice, (y[scored], choice.combination.apply(answers)))


class AutoText(Auto):
    """The same over texts."""

    kind = "text"


class AutoImage(Auto):
    """The same over pictures."""

    kind = "image"


@dataclass(slots=True)
class _State:
    """What an earlier attempt had found out."""

    path: Path
    spent_s: float = 0.0
    folds: int = 0  # of each candidate; 0 before the first one was timed
    abandoned: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, job: JobContext) -> "_State":
        path = job.checkpoint / ROOM / _STATE
        known = json.loads(path.read_text()) if path.exists() else {}
        return cls(path, **known)

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        values = {"spent_s": self.spent_s, "folds": self.folds, "abandoned": self.abandoned}
        write_atomically(self.path, json.dumps(values).encode())


class _Search:
    """Trains candidates until the time is up."""

    def __init__(self, pool: Pool, params: Mapping[str, Any], job: JobContext, state: _State) -> None:
        self.pool, self.job, self.state = pool, job, state
        self.candidates = portfolio(pool.kind, pool.data, params["families"])
        self.limit_s, self.most_folds = float(params["time_limit_s"]), pool.count
        self.most_members = int(params["members"])
        self.begun = time.monotonic() - state.spent_s
        self.members: list[Member] = []
        self.refused: Exception | None = None  # why the last one could not be trained
        self.hurried = False  # another one was given up for want of time

    def run(self) -> None:
        """All candidates, or those for which there is time. Stopped when the job is asked to stop."""
        for candidate in self.candidates:
            if candidate.name in self.state.abandoned:
                continue
            try:
                self._suits(candidate)
                self.members.append(self._try(candidate))
            except Stopped:
                self._remember()
                raise
            except _NotTried as error:
                self.hurried = True
                self.state.abandoned[candidate.name] = str(error)
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever a library raises: this one cannot, others may
                self.refused = error.with_traceback(None)  # which would hold the memory of what had been learnt
                self._give_up(candidate.name, error)
            self._remember()

    def failure(self) -> Exception:
        """Why there is no member at all."""
        if isinstance(self.refused, AimassError) and not self.hurried:
            return self.refused
        why = "; ".join(f"{name}: {reason}" for name, reason in self.state.abandoned.items())
        if self.refused is not None and not self.hurried:
            return InvalidSpec.at("params", "families", msg=f"none of them could learn from this data ({why})")
        return InvalidSpec.at("params", "time_limit_s", msg=f"no model was finished in time; raise it ({why})")

    def _give_up(self, name: str, error: Exception) -> None:
        """In the report, and in the log. Errors of libraries are known by their type as well."""
        reason = str(error) if isinstance(error, AimassError) else f"{type(error).__name__}: {error}"
        self.state.abandoned[name] = reason
        self.job.log(f"{name} was given up: {reason}", level="warning")

    def finish(self, weights: Sequence[float]) -> None:
        """Those that were chosen and need no rows to stop by learn from all of them, by turns, while there is time.

        One that cannot keeps the models of its folds.
        """
        chosen = [member for member, weight in zip(self.members, weights, strict=True) if weight]
        turns = [(turn, member) for member in chosen for turn in range(member.relearns)]
        trees = 0
        for turn, member in sorted(turns, key=lambda one: one[0]):
            trees += member.trees
            if turn and trees > _MOST_TREES:
                break
            again = f"{member.candidate.name} of all rows"
            if again in self.state.abandoned:
                continue
            try:
                member.relearn(self.pool, turn, self.job, self.begun + self.limit_s)
            except Stopped:
                if self.job.should_stop():
                    self._remember()
                    raise
                if not member.again:
                    name = member.candidate.name
                    self.job.log(f"{name}: there was no time to learn from all rows at once", "warning")
                break
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001 - as of the folds
                member.again.clear()
                self._give_up(again, error)
            self._remember()

    def _suits(self, candidate: Candidate) -> None:
        """_NotTried if the one that it is like was no better than another."""
        known = {member.candidate.name: member for member in self.members}
        if candidate.like in known and candidate.than in known:
            like, than = (self._score(known[name]) for name in (candidate.like, candidate.than))
            if like <= than:
                raise _NotTried(f"{candidate.like}, which it is like, was no better than {candidate.than}")

    def _score(self, member: Member) -> float:
        """By the main metric, on rows that it had not learnt from; more is better."""
        data, pool = self.pool.data, self.pool
        scored = pool.scored(len(member.answers))
        y = pool.targets[scored]
        return scorer(data.metric, data.task, y, ordinal=data.signature.ordinal)(y, member.out_of_fold(pool))

    def _try(self, candidate: Candidate) -> Member:
        member, fold = Member(candidate), 0
        while fold < (self.state.folds or 1):
            left = self.limit_s - self.spent_s - self._kept_s
            if fold and left < member.seconds / fold * (self.state.folds - fold):
                raise _NotTried(f"{self.state.folds} folds of {member.seconds / fold:.1f} s each were too long")
            if left <= 0:
                raise _NotTried("the time was up")
            share_s = left * _SHARE / ((self.state.folds or 1) - fold)
            step = f"training {candidate.name}, fold {fold + 1} of {self.state.folds or self.most_folds}"
            self.job.progress(0.1 + 0.68 * self.spent_s / self.limit_s, step, left)
            try:
                member.learn(self.pool, fold, self.job, time.monotonic() + share_s)
            except Stopped:
                if self.job.should_stop():
                    raise
                raise _NotTried(f"a fold took longer than its share, {share_s:.1f} s") from None
            fold += 1
            if not self.state.folds:
                fits = member.seconds * self.most_folds <= _FIRST_SHARE * self.limit_s
                self.state.folds = self.most_folds if fits else 1
            self._remember()
        return member

    @property
    def _kept_s(self) -> float:
        """For models of all rows, each somewhat longer than one of a fold, of as many members as may be chosen."""
        needed = [_LONGER * min(one.relearns, _SURE) * one.seconds / len(one.graphs) for one in self.members]
        return sum(sorted(needed)[-self.most_members :])

    @property
    def spent_s(self) -> float:
        """Of all attempts."""
        return time.monotonic() - self.begun

    def _remember(self) -> None:
        self.state.spent_s = self.spent_s
        self.state.save()


class _NotTried(Exception):
    """A candidate was not finished because of the time limit, or is not worth its time."""


@dataclass(frozen=True, slots=True)
class FittedAuto:
    """The chosen combination over the graphs of its members."""

    data: LearningData
    used: tuple[Member, ...]
    combination: Combination
    report: dict[str, Any]
    left_out: tuple[Array, Array]  # targets and answers out of fold

    @classmethod
    def of(cls, data: LearningData, search: _Search, choice: Choice, left_out: tuple[Array, Array]) -> "FittedAuto":
        """Keep what the choice needs, and say what was tried."""
        weights = choice.combination.weights
        tried: list[dict[str, Any]] = [
            {
                "name": member.candidate.name, "family": member.candidate.family,
                "params": dict(member.candidate.params), data.metric: value, "weight": round(weight, 4),
                "models": len(member.served), "seconds": round(member.seconds, 2),
            }
            for member, value, weight in zip(search.members, choice.members, weights, strict=True)
        ]  # fmt: skip
        report = {
            "tried": sorted(tried, key=lambda line: -line["weight"]),
            "given_up": search.state.abandoned,
            "folds": search.state.folds,
            "combinations": choice.scores,
            "chosen": choice.name,
            "why": choice.why,
            "temperature": getattr(choice.combination, "temperature", None),
            "seconds": round(search.spent_s, 2),
        }
        used = tuple(member for member, weight in zip(search.members, weights, strict=True) if weight)
        return cls(data, used, choice.combination, report, left_out)

    def predict(self, inputs: Inputs) -> Array:
        """Probabilities [N, K] or values [N], combined in double precision from the answers of each model."""
        answers = iter([self._member(member, inputs) for member in self.used])
        nothing = np.zeros(0)
        return self.combination.apply([next(answers) if weight else nothing for weight in self.combination.weights])

    def _member(self, member: Member, inputs: Inputs) -> Array:
        answers = [predict(open_session(graph, self.data.threads), inputs) for graph in member.served]
        return np.asarray(np.mean(np.stack(answers), axis=0, dtype=np.float64))

    def held_out(self) -> tuple[Array, Array]:
        """Every row, answered by models that had not seen it. The few weights of the combination have."""
        return self.left_out

    def to_onnx(self) -> onnx.ModelProto:
        """All models in one graph over the same inputs."""
        graph, signature = Graph(), self.data.signature
        means = [_mean(graph, member.served, f"m{m}") for m, member in enumerate(self.used)]
        self.combination.to_nodes(graph, means, signature.outputs[0].name)
        return graph.model(signature.inputs, signature.outputs)

    def facts(self) -> dict[str, Any]:
        """What was tried, with its score on rows it had not seen, and why the winner won."""
        return self.report


def _mean(graph: Graph, models: Sequence[bytes], prefix: str) -> str:
    names = [graph.include(onnx.load_from_string(raw), f"{prefix}f{fold}") for fold, raw in enumerate(models)]
    return names[0] if len(names) == 1 else graph.add("Mean", *names)
