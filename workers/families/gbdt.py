"""Gradient-boosted trees (LightGBM)."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import lightgbm as lgb
import numpy as np
import numpy.typing as npt
import onnx

from workers.context import JobContext, Stopped
from workers.export.graph import Graph
from workers.export.trees import Ensemble
from workers.families.answers import answering_model
from workers.families.boosting import EVERY, PATIENCE_FACTOR, Best
from workers.families.encoding import TreeEncoder
from workers.families.pairs import interacting
from workers.families.per_label import FittedLabels, fit_labels
from workers.learning import Array, Inputs, LearningData, RowGroups
from workers.training.files import write_atomically

_CHECKPOINT, _BEST = "gbdt.txt", "gbdt-best.json"  # LightGBM's own text format; the state of early stopping


class Gbdt:
    """The family."""

    devices = ("cpu",)

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = params

    def fit(self, data: LearningData, job: JobContext) -> "FittedGbdt | FittedLabels":
        """Boost until the validation loss stops falling; resumes from the job's checkpoint."""
        if data.task == "multilabel":
            return fit_labels(self.fit, data, job)
        encoder, x = self._features(data)
        if data.streamed is None:
            train = lgb.Dataset(x, label=data.train.y, weight=data.row_weights(data.train.y), free_raw_data=False)
        else:
            rows = _Group.all_of(data.streamed, encoder)
            train = _Streamed(rows, label=data.streamed.y, weight=data.row_weights(data.streamed.y))
        watched = train.create_valid(
            encoder.transform(data.validation.inputs), label=data.validation.y,
            weight=data.row_weights(data.validation.y),
        )  # fmt: skip
        total = self.params["n_estimators"]
        before = _resume(job)
        done = before.current_iteration() if before else 0
        best = Best.load(job.checkpoint / _BEST) if before else Best()
        callbacks: list[Callable[..., Any]] = [_Watch(job, total, data.training.checkpoint_every_s, best)]
        stopping = data.training.early_stopping
        if stopping is not None:
            callbacks.append(_EarlyStopping(best, stopping.patience * PATIENCE_FACTOR, stopping.min_delta))
        booster = before
        if booster is None or done < total:
            booster = lgb.train(
                self._settings(data), train, total - done, valid_sets=[watched], valid_names=["validation"],
                init_model=before, callbacks=callbacks,
            )  # fmt: skip
        return FittedGbdt(data, encoder, booster, best.round or booster.current_iteration())

    def _features(self, data: LearningData) -> tuple[TreeEncoder, npt.NDArray[np.float32]]:
        encoder, x = TreeEncoder.learn(data, keep_missing=True, one_hot=self.params["one_hot"])
        if self.params["values"]:
            encoder, x = encoder.with_values(self.params["values"], data, x)
        numbers = 0 if encoder.numeric is None else len(encoder.numeric.fill)
        if not self.params["pairs"] or numbers < 2:  # noqa: PLR2004 - a pair
            return encoder, x
        columns = interacting(x, data.train.y, numbers, self.params["pairs"], self._settings(data))
        return encoder.with_pairs(columns, x) if len(columns) else (encoder, x)

    def _settings(self, data: LearningData) -> dict[str, Any]:
        p = self.params
        objective = "regression"
        if data.task == "classification":
            objective = "multiclass" if data.n_classes > 2 else "binary"  # noqa: PLR2004 - binary
        settings = {
            "objective": objective, "learning_rate": p["learning_rate"], "num_leaves": p["num_leaves"],
            "max_depth": p["max_depth"], "min_child_samples": p["min_child_samples"],
            "bagging_fraction": p["subsample"], "bagging_freq": 1, "feature_fraction": p["colsample"],
            "reg_lambda": p["reg_lambda"],
            "seed": data.training.seed, "num_threads": data.threads, "deterministic": True, "force_row_wise": True,
            "verbosity": -1, "feature_pre_filter": False,
        }  # fmt: skip
        if objective == "multiclass":
            settings["num_class"] = data.n_classes
        return settings


@dataclass(frozen=True, slots=True)
class FittedGbdt:
    """A booster and how many of its rounds count."""

    data: LearningData
    encoder: TreeEncoder
    booster: lgb.Booster
    rounds: int

    def predict(self, inputs: Inputs) -> Array:
        """Probabilities [N, K] or values [N]."""
        answer = np.asarray(self.booster.predict(self.encoder.transform(inputs), num_iteration=self.rounds))
        if self.data.task == "regression":
            return self.data.standard.restore(answer)
        return np.stack([1 - answer, answer], axis=1) if answer.ndim == 1 else answer

    def to_onnx(self) -> onnx.ModelProto:
        """One tree ensemble and a link function."""
        graph = Graph()
        dump = self.booster.dump_model(num_iteration=self.rounds)
        outputs = dump["num_tree_per_iteration"]
        ensemble = Ensemble(outputs)
        for index, tree in enumerate(dump["tree_info"]):
            ensemble.add_tree(**_table(tree["tree_structure"]), first_target=index % outputs)
        score = ensemble.to_node(graph, self.encoder.to_nodes(graph))
        model = answering_model(graph, score, self.data, outputs)
        onnx.helper.set_model_props(model, {"trees": "boosted"})
        return model

    def facts(self) -> dict[str, Any]:
        """Boosting rounds that early stopping kept."""
        return {"rounds": self.rounds}


class _Group(lgb.Sequence):
    """A group of rows that do not fit memory, as LightGBM reads them: some for its bins, then all of them once."""

    def __init__(self, groups: RowGroups, encoder: TreeEncoder, at: int, kept: dict[int, Array]) -> None:
        self.groups, self.encoder, self.at, self.kept = groups, encoder, at, kept
        self.batch_size = max(1, len(self))

    @classmethod
    def all_of(cls, groups: RowGroups, encoder: TreeEncoder) -> list["_Group"]:
        """They keep one group's features among them, since groups are read one after another."""
        kept: dict[int, Array] = {}
        return [cls(groups, encoder, at, kept) for at in range(len(groups.sizes))]

    def __len__(self) -> int:
        return self.groups.sizes[self.at]

    def __getitem__(self, rows: int | slice | list[int]) -> Array:
        if self.at not in self.kept:
            self.kept.clear()
            self.kept[self.at] = self.encoder.transform(self.groups.read(self.at).inputs).astype(np.float64)
        return self.kept[self.at][rows]


class _Streamed(lgb.Dataset):
    """Groups of rows. LightGBM goes on with a booster by what it says of all rows, and asks it of arrays alone."""

    def _set_init_score_by_predictor(self, predictor: Any, data: Any, used_indices: Any) -> "_Streamed":  # noqa: ANN401, ARG002 - LightGBM's own
        """Group by group; of several outputs one after another, as LightGBM keeps scores."""
        if predictor is not None:
            scores = [predictor.predict(group[:], raw_score=True).reshape(len(group), -1) for group in data]
            self.set_init_score(np.concatenate(scores).ravel(order="F"))
        return self


def _table(root: dict[str, Any]) -> dict[str, Array]:
    """A LightGBM tree of nested nodes as arrays over its nodes, the root first."""
    nodes, children = [root], []
    for node in nodes:  # grows while it is walked
        if "split_feature" in node:
            children.append((len(nodes), len(nodes) + 1))
            nodes += [node["left_child"], node["right_child"]]
        else:
            children.append((0, 0))
    left, right = np.asarray(children, np.int64).T
    return {
        "feature": np.asarray([node.get("split_feature", 0) for node in nodes], np.int64),
        "threshold": np.asarray([node.get("threshold", 0.0) for node in nodes], np.float64),
        "left": left,
        "right": right,
        "missing_left": np.asarray([_missing_left(node) for node in nodes], bool),
        "leaf": np.asarray(["split_feature" not in node for node in nodes], bool),
        "weights": np.asarray([[node.get("leaf_value", 0.0)] for node in nodes], np.float64),
    }


def _missing_left(node: dict[str, Any]) -> bool:
    """Where a node sends NaN; one that saw none while it was grown reads it as zero."""
    if node.get("missing_type") == "NaN":
        return bool(node["default_left"])
    return float(node.get("threshold", 0.0)) >= 0


class _EarlyStopping:
    """A LightGBM callback that does what LightGBM's own does, and can be resumed."""

    def __init__(self, best: Best, patience: int, min_delta: float) -> None:
        self.best, self.patience, self.min_delta = best, patience, min_delta
        self.order = 10  # before `_Watch` saves what is the best; LightGBM reads it from the object, not the class

    def __call__(self, env: lgb.callback.CallbackEnv) -> None:
        results, done = env.evaluation_result_list or [], env.iteration + 1
        loss = results[0][2]
        if loss < self.best.loss - self.min_delta:
            self.best.loss, self.best.round = loss, done
        elif done - self.best.round >= self.patience:
            raise lgb.callback.EarlyStopException(self.best.round - 1, results)


class _Watch:
    """A LightGBM callback: live metrics, progress, checkpoints, and a way to stop."""

    def __init__(self, job: JobContext, total: int, every_s: float, best: Best) -> None:
        self.order = 20
        self.job, self.total, self.every_s, self.best = job, total, every_s, best
        self.started = self.saved = time.monotonic()
        self.first: int | None = None

    def __call__(self, env: lgb.callback.CallbackEnv) -> None:
        done = env.iteration + 1
        self.first = env.iteration if self.first is None else self.first
        if done % EVERY == 0 or done == self.total:
            for dataset, name, value, *_ in env.evaluation_result_list or []:
                self.job.metric(f"{dataset}_{name}", done, value)
            per_round = (time.monotonic() - self.started) / (done - self.first)
            left = per_round * (self.total - done)
            self.job.progress(0.1 + 0.7 * done / self.total, f"boosting round {done} of at most {self.total}", left)
        stop = self.job.should_stop()
        if stop or (done % EVERY == 0 and time.monotonic() - self.saved >= self.every_s):
            self.saved = time.monotonic()
            _save(env.model, self.best, self.job)
        if stop:
            raise Stopped


def _save(booster: Any, best: Best, job: JobContext) -> None:  # noqa: ANN401 - LightGBM types it with its cross-validation twin
    job.checkpoint.mkdir(parents=True, exist_ok=True)
    write_atomically(job.checkpoint / _CHECKPOINT, booster.model_to_string(num_iteration=-1).encode())
    best.save(job.checkpoint / _BEST)
    job.checkpointed()


def _resume(job: JobContext) -> lgb.Booster | None:
    path = job.checkpoint / _CHECKPOINT
    if not path.exists():
        return None
    booster = lgb.Booster(model_str=path.read_text())
    job.log(f"resumed from round {booster.current_iteration()}")
    return booster
