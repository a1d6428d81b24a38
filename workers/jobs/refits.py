"""Further fits of a training: folds for cross-validation, shares of the training rows for a learning curve."""

import io
import json
import shutil
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy import stats  # type: ignore[import-untyped]  # scipy has no type information

from app.core.errors import InvalidData, InvalidSpec
from app.specs.jobs import TrainSpec
from workers.context import FitContext, JobContext, Stopped
from workers.data.prepare import Prepared
from workers.data.splits import Split
from workers.evaluation.intervals import LEVEL
from workers.evaluation.metrics import evaluate
from workers.features.recipe import learner_of
from workers.jobs.settling import settle_threshold
from workers.learning import Array, Rule
from workers.training.files import write_atomically

_KEPT = "refits.json"  # results of whole fits, in the job's checkpoint
_RESIDUALS = "residuals of {}.npy"  # beside them
_REFUSED = "refused"  # in place of the results of a share from which the spec cannot learn
_Results = dict[str, dict[str, Any]]


@dataclass(slots=True)
class Refits:
    """A training and where it runs; `results` has rows and metrics of each further fit by its name, once `run`.

    A job that was killed goes on with the fit after the last whole one.
    """

    job: JobContext
    spec: TrainSpec
    prepared: Prepared
    positive: int
    threads: int
    device: str
    results: _Results = field(default_factory=dict)

    @property
    def splits(self) -> dict[str, Split]:
        """One for each fit, by its name."""
        closer = self.prepared.closer
        folds = {f"fold {number}": split for number, split in enumerate(closer.folds, 1)}
        return folds | {_share_name(share): split for share, split in closer.shares.items()}

    def run(self) -> None:
        """Raises Stopped when the job is asked to stop. A share that is too small for the spec is left out and told."""
        splits = self.splits
        shares = {_share_name(share) for share in self.prepared.closer.shares}
        self._resume()
        for index, (name, split) in enumerate(splits.items(), 1):
            if name in self.results:
                continue
            if self.job.should_stop():
                raise Stopped
            context = FitContext(self.job, index, 1 + len(splits), name)
            try:
                self.results[name] = self._fit(context, split)
            except (InvalidData, InvalidSpec) as error:
                if name not in shares:
                    raise
                self.results[name] = {_REFUSED: str(error)}
                shutil.rmtree(context.folder, ignore_errors=True)
            self._keep()
        self.prepared.notes.warnings += [
            f"the learning curve lacks {name}: {self.results[name][_REFUSED]}"
            for name in splits
            if _REFUSED in self.results[name]
        ]

    def _fit(self, context: FitContext, split: Split) -> dict[str, Any]:
        context.progress(0.0, "training")
        prepared = replace(self.prepared, split=split)
        learner = learner_of(self.spec)
        fitted = learner.fit(prepared.learning(self.spec, self.threads, self.device), context)
        threshold, _ = settle_threshold(self.spec, prepared, fitted, self.positive)
        rule = Rule.of(replace(prepared.signature, threshold=threshold), self.positive)
        found: dict[str, Any] = {"rows": split.sizes()}
        for part in ("train", "test"):
            inputs, y = prepared.part(part)
            answers = fitted.predict(inputs)
            found[part] = evaluate(self.spec.task, y, answers, rule=rule)
        if self.spec.evaluation.intervals is not None:
            self._keep_residuals(context.name, y - answers)
        shutil.rmtree(context.folder, ignore_errors=True)
        return found

    def _resume(self) -> None:
        path = self.job.checkpoint / _KEPT
        if path.exists():
            self.results = json.loads(path.read_text())
            self.job.log(f"resumed after {len(self.results)} further fits")

    def _keep(self) -> None:
        self.job.checkpoint.mkdir(parents=True, exist_ok=True)
        write_atomically(self.job.checkpoint / _KEPT, json.dumps(self.results).encode())
        self.job.checkpointed()

    def _keep_residuals(self, name: str, values: Array) -> None:
        buffer = io.BytesIO()
        np.save(buffer, values)
        self.job.checkpoint.mkdir(parents=True, exist_ok=True)
        write_atomically(self.job.checkpoint / _RESIDUALS.format(name), buffer.getvalue())

    def residuals(self) -> Array | None:
        """True minus predicted [N] of the rows that the folds held out; None without folds or without intervals."""
        if self.spec.evaluation.intervals is None or not self.prepared.closer.folds:
            return None
        names = [f"fold {number}" for number in range(1, len(self.prepared.closer.folds) + 1)]
        return np.concatenate([np.load(self.job.checkpoint / _RESIDUALS.format(name)) for name in names])

    def cross_validation(self) -> dict[str, Any] | None:
        """Metrics of the folds: each value, mean, and the mean's interval; None without folds.

        It is nested: a family gets a fold's training and validation rows alone, and a threshold is tuned by them.

        Folds share training rows, so their spread alone would promise too much. The variance is corrected for it as
        Nadeau and Bengio (2003) do: by held-out rows for a row that was learned from.
        """
        folds = self.prepared.closer.folds
        if not folds:
            return None
        found = [self.results[f"fold {number}"] for number in range(1, len(folds) + 1)]
        ratio = float(np.mean([len(f.test) / (len(f.train) + len(f.validation)) for f in folds]))
        quantile = float(stats.t.ppf((1 + LEVEL) / 2, len(folds) - 1))
        metrics = {}
        for name in found[0]["test"]:
            if not all(name in fold["test"] for fold in found):
                continue
            values = [fold["test"][name] for fold in found]
            mean, variance = float(np.mean(values)), float(np.var(values, ddof=1))
            half = quantile * ((1 / len(folds) + ratio) * variance) ** 0.5
            metrics[name] = {"mean": mean, "interval": [mean - half, mean + half], "values": values}
        return {
            "folds": len(folds), "of": "all rows that are not test rows", "nested": True, "level": LEVEL,
            "rows": [fold["rows"] for fold in found], "metrics": metrics,
        }  # fmt: skip

    def learning_curve(self, main: str, whole: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
        """The main metric on training and test rows by training rows, those of the model itself last."""
        named = [(share, self.results[_share_name(share)]) for share in self.prepared.closer.shares]
        named = [(share, fit) for share, fit in named if _REFUSED not in fit]
        if not named:
            return []
        named.append((1.0, {"rows": self.prepared.split.sizes(), **whole}))
        return [
            {"share": share, "rows": fit["rows"]["train"], **{part: fit[part].get(main) for part in ("train", "test")}}
            for share, fit in named
        ]


def _share_name(share: float) -> str:
    return f"{share:.0%} of the training rows"
