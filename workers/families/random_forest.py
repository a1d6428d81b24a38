"""Random forest and extra trees (scikit-learn) on numbers with imputed gaps and target-ordered categories."""

import time
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)

from workers.context import JobContext, Stopped
from workers.export.graph import Graph, binary_probabilities, value_output
from workers.export.trees import Ensemble
from workers.families.encoding import TreeEncoder
from workers.families.forest_files import load_trees, save_trees
from workers.families.per_label import FittedLabels, fit_labels
from workers.learning import Array, Inputs, LearningData

_CHUNK_S = 2.0  # how often, about, progress is told and a request to stop is seen


class RandomForest:
    """The family."""

    devices = ("cpu",)
    estimators: tuple[type[Any], type[Any]] = RandomForestClassifier, RandomForestRegressor

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = params

    def fit(self, data: LearningData, job: JobContext) -> "FittedForest | FittedLabels":
        """Grow the trees; validation rows are not used. Resumes from the job's checkpoint to the very same forest."""
        if data.task == "multilabel":
            return fit_labels(self.fit, data, job)
        encoder, x = TreeEncoder.learn(data, keep_missing=False)
        estimator = self.estimators[data.task == "regression"](
            n_estimators=1, max_depth=self.params["max_depth"], min_samples_leaf=self.params["min_samples_leaf"],
            max_features=self.params["max_features"], n_jobs=data.threads, random_state=data.training.seed,
            warm_start=True,
        )  # fmt: skip
        growth = _Growth(estimator, x, data.train.y, data.row_weights(data.train.y), self.params["n_estimators"], job)
        growth.run(data.threads, data.training.checkpoint_every_s)
        estimator.set_params(n_jobs=1)
        return FittedForest(data, encoder, estimator)


class ExtraTrees(RandomForest):
    """The same of trees whose thresholds are drawn at random."""

    estimators = ExtraTreesClassifier, ExtraTreesRegressor


@dataclass(slots=True)
class _Growth:
    """Grows a forest chunk by chunk. Each tree has a seed of its own, so where a chunk ends changes no tree."""

    estimator: Any
    x: Array
    y: Array
    weights: Array | None
    total: int
    job: JobContext
    saved: int = 0  # trees on disk

    def run(self, threads: int, save_every_s: float) -> None:
        """To `total` trees; raises Stopped, with all grown trees on disk, when the job is asked to stop."""
        self.estimator.fit(self.x, self.y, self.weights)  # one tree
        done = self._resume()
        begun = saved_at = time.monotonic()
        start, size = done, threads
        while done < self.total:
            began = time.monotonic()
            done = min(self.total, done + size)
            self.estimator.set_params(n_estimators=done).fit(self.x, self.y, self.weights)
            now = time.monotonic()
            size *= 2 if now - began < _CHUNK_S / 2 else 1
            left = (now - begun) / (done - start) * (self.total - done)
            self.job.progress(0.1 + 0.7 * done / self.total, f"grown {done} of {self.total} trees", left)
            stop = self.job.should_stop()
            if stop or now - saved_at >= save_every_s:
                saved_at = now
                self._save()
            if stop:
                raise Stopped

    def _resume(self) -> int:
        first = self.estimator.estimators_[0]
        trees = load_trees(self.job.checkpoint, first.tree_)
        for tree in trees[1:]:
            grown = copy(first)
            grown.tree_ = tree
            self.estimator.estimators_.append(grown)
        self.saved = len(trees)
        if trees:
            self.job.log(f"resumed from tree {len(trees)}")
        return max(1, len(trees))

    def _save(self) -> None:
        trees = [estimator.tree_ for estimator in self.estimator.estimators_[self.saved :]]
        save_trees(self.job.checkpoint, trees, self.saved)
        self.saved += len(trees)
        self.job.checkpointed()


@dataclass(frozen=True, slots=True)
class FittedForest:
    """The grown forest."""

    data: LearningData
    encoder: TreeEncoder
    estimator: Any

    def predict(self, inputs: Inputs) -> Array:
        """Probabilities [N, K] or values [N]."""
        x = self.encoder.transform(inputs)
        if self.data.task == "regression":
            return self.data.standard.restore(self.estimator.predict(x))
        return _all_classes(self.estimator.predict_proba(x), self.estimator.classes_, self.data.n_classes)

    def to_onnx(self) -> onnx.ModelProto:
        """One tree ensemble; each leaf holds its share of the mean."""
        graph, trees = Graph(), self.estimator.estimators_
        regression, binary = self.data.task == "regression", self.data.n_classes == 2  # noqa: PLR2004 - one output
        ensemble = Ensemble(1 if regression or binary else self.data.n_classes)
        for estimator in trees:
            tree = estimator.tree_
            leaf_values = tree.value[:, 0, :]
            if not regression:
                leaf_values = _all_classes(leaf_values, self.estimator.classes_, self.data.n_classes)
                leaf_values = leaf_values[:, 1:] if binary else leaf_values
            ensemble.add_tree(
                feature=tree.feature, threshold=tree.threshold, left=tree.children_left, right=tree.children_right,
                missing_left=np.zeros(tree.node_count, bool), leaf=tree.children_left < 0,
                weights=leaf_values / len(trees),
            )  # fmt: skip
        score = ensemble.to_node(graph, self.encoder.to_nodes(graph))
        if regression:
            value_output(graph, score, self.data.standard.mean, self.data.standard.scale)
        elif binary:
            binary_probabilities(graph, score, is_probability=True)
        else:
            graph.add("Identity", score, output="probabilities")
        signature = self.data.signature
        model = graph.model(signature.inputs, signature.outputs)
        onnx.helper.set_model_props(model, {"trees": "averaged"})
        return model

    def facts(self) -> dict[str, Any]:
        """Size of the forest."""
        trees = self.estimator.estimators_
        return {"trees": len(trees), "nodes": int(sum(tree.tree_.node_count for tree in trees))}


def _all_classes(probabilities: Array, known: Array, n_classes: int) -> Array:
    """Widen [N, known classes] to [N, n_classes]: a class without a training row has probability 0."""
    full = np.zeros((len(probabilities), n_classes))
    full[:, known] = probabilities
    return full
