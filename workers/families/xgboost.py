"""Gradient-boosted trees (XGBoost)."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import xgboost as xgb

from workers.context import JobContext, Stopped
from workers.export.graph import Graph
from workers.export.trees import Ensemble
from workers.families.answers import answering_model
from workers.families.boosting import EVERY, PATIENCE_FACTOR, Best
from workers.families.encoding import TreeEncoder
from workers.families.per_label import FittedLabels, fit_labels
from workers.learning import Array, Inputs, LearningData, Part
from workers.training.files import write_atomically

_CHECKPOINT, _BEST = "xgboost.ubj", "xgboost-best.json"  # XGBoost's own binary JSON; the state of early stopping
_LARGEST = np.finfo(np.float32).max  # XGBoost refuses infinite features


class Xgboost:
    """The family."""

    devices = ("cpu",)

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = params

    def fit(self, data: LearningData, job: JobContext) -> "FittedXgboost | FittedLabels":
        """Boost until the validation loss stops falling; resumes from the job's checkpoint."""
        if data.task == "multilabel":
            return fit_labels(self.fit, data, job)
        encoder, x = TreeEncoder.learn(data, keep_missing=True)
        train = _matrix(x, data, data.train)
        watched = _matrix(encoder.transform(data.validation.inputs), data, data.validation)
        watch = _Watch(data, self.params["n_estimators"], job)
        before = watch.resume()
        done = before.num_boosted_rounds() if before else 0
        booster = before
        if booster is None or (done < watch.total and not watch.exhausted(done)):
            booster = xgb.train(
                self._settings(data), train, watch.total - done, evals=[(watched, "validation")], verbose_eval=False,
                xgb_model=before, callbacks=[watch],
            )  # fmt: skip
        if watch.stopped:
            raise Stopped
        best = watch.best.round if watch.stopping is not None else 0  # without early stopping all rounds count
        return FittedXgboost(data, encoder, booster, best or booster.num_boosted_rounds())

    def _settings(self, data: LearningData) -> dict[str, Any]:
        p = self.params
        settings = {
            "objective": "reg:squarederror", "base_score": 0.0, "tree_method": "hist", "eta": p["learning_rate"],
            "max_depth": p["max_depth"], "min_child_weight": p["min_child_weight"], "subsample": p["subsample"],
            "colsample_bytree": p["colsample"], "lambda": p["reg_lambda"], "seed": data.training.seed,
            "nthread": data.threads, "verbosity": 0,
        }  # fmt: skip
        if data.task == "classification":
            settings |= {"objective": "binary:logistic", "base_score": 0.5, "eval_metric": "logloss"}
            if data.n_classes > 2:  # noqa: PLR2004 - binary
                settings |= {"objective": "multi:softprob", "eval_metric": "mlogloss", "num_class": data.n_classes}
        return settings


def _matrix(x: Array, data: LearningData, part: Part | None = None) -> xgb.DMatrix:
    """Features, and the targets and weights of the part that they are of."""
    matrix = xgb.DMatrix(np.clip(x, -_LARGEST, _LARGEST), nthread=data.threads)
    if part is not None:
        matrix.set_info(label=part.y, weight=data.row_weights(part.y))
    return matrix


@dataclass(frozen=True, slots=True)
class FittedXgboost:
    """A booster and how many of its rounds count."""

    data: LearningData
    encoder: TreeEncoder
    booster: xgb.Booster
    rounds: int

    def predict(self, inputs: Inputs) -> Array:
        """Probabilities [N, K] or values [N]."""
        rows = _matrix(self.encoder.transform(inputs), self.data)
        answer = self.booster.predict(rows, iteration_range=(0, self.rounds))
        if self.data.task == "regression":
            return self.data.standard.restore(answer)
        return np.stack([1 - answer, answer], axis=1) if answer.ndim == 1 else answer

    def to_onnx(self) -> onnx.ModelProto:
        """One tree ensemble and a link function."""
        graph = Graph()
        model = json.loads(bytes(self.booster.save_raw("json")))["learner"]["gradient_booster"]["model"]
        outputs = self.data.n_classes if self.data.n_classes > 2 else 1  # noqa: PLR2004 - binary
        ensemble = Ensemble(outputs)
        for tree, target in zip(model["trees"][: self.rounds * outputs], model["tree_info"], strict=False):
            ensemble.add_tree(**_table(tree), first_target=target)
        score = ensemble.to_node(graph, self.encoder.to_nodes(graph))
        exported = answering_model(graph, score, self.data, outputs)
        onnx.helper.set_model_props(exported, {"trees": "boosted"})
        return exported

    def facts(self) -> dict[str, Any]:
        """Boosting rounds that early stopping kept."""
        return {"rounds": self.rounds}


def _table(tree: dict[str, Any]) -> dict[str, Array]:
    """An XGBoost tree as arrays over its nodes.

    It sends `feature < threshold` left, a tree ensemble `feature <= threshold`: the next smaller float32 is the same.
    """
    left, conditions = np.asarray(tree["left_children"]), np.asarray(tree["split_conditions"], np.float32)
    leaf = left < 0
    return {
        "feature": np.asarray(tree["split_indices"], np.int64),
        "threshold": np.nextafter(conditions, np.float32(-np.inf)).astype(np.float64),
        "left": left,
        "right": np.asarray(tree["right_children"]),
        "missing_left": np.asarray(tree["default_left"], bool),
        "leaf": leaf,
        "weights": np.where(leaf, conditions, 0.0).astype(np.float64)[:, None],
    }


class _Watch(xgb.callback.TrainingCallback):
    """Live metrics, progress, early stopping, checkpoints, and a way to stop."""

    def __init__(self, data: LearningData, total: int, job: JobContext) -> None:
        super().__init__()
        self.total, self.job, self.best, self.stopped = total, job, Best(), False
        self.stopping, self.every_s = data.training.early_stopping, data.training.checkpoint_every_s
        self.started = self.saved = time.monotonic()
        self.before = 0  # rounds of earlier attempts

    def after_iteration(self, model: Any, epoch: int, evals_log: dict[str, Any]) -> bool:  # noqa: ANN401 - its type is no part of the library's interface
        """True ends the training."""
        done = self.before + epoch + 1  # the library counts from the resumption
        [(name, values)] = evals_log["validation"].items()
        loss = float(values[-1])
        if loss < self.best.loss - (self.stopping.min_delta if self.stopping else 0.0):
            self.best = Best(done, loss)
        if done % EVERY == 0 or done == self.total:
            self.job.metric(f"validation_{name}", done, loss)
            left = (time.monotonic() - self.started) / (epoch + 1) * (self.total - done)
            self.job.progress(0.1 + 0.7 * done / self.total, f"boosting round {done} of at most {self.total}", left)
        self.stopped = self.job.should_stop()
        if self.stopped or (done % EVERY == 0 and time.monotonic() - self.saved >= self.every_s):
            self._save(model)
        return self.stopped or self.exhausted(done)

    def exhausted(self, done: int) -> bool:
        """Has the loss not fallen for as long as the spec allows?"""
        return self.stopping is not None and done - self.best.round >= self.stopping.patience * PATIENCE_FACTOR

    def resume(self) -> xgb.Booster | None:
        """The trees of an earlier attempt, and what was the best then."""
        path = self.job.checkpoint / _CHECKPOINT
        if not path.exists():
            return None
        self.best = Best.load(self.job.checkpoint / _BEST)
        booster = xgb.Booster(model_file=path)
        self.before = booster.num_boosted_rounds()
        self.job.log(f"resumed from round {self.before}")
        return booster

    def _save(self, booster: xgb.Booster) -> None:
        self.saved = time.monotonic()
        self.job.checkpoint.mkdir(parents=True, exist_ok=True)
        write_atomically(self.job.checkpoint / _CHECKPOINT, bytes(booster.save_raw("ubj")))
        self.best.save(self.job.checkpoint / _BEST)
        self.job.checkpointed()
