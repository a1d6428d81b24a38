"""Logistic regression and ridge on TF-IDF of words and of characters (scikit-learn)."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import scipy.sparse as sp  # type: ignore[import-untyped]  # no stubs
from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]  # no stubs
from scipy.special import expit, log_softmax, softmax  # type: ignore[import-untyped]  # no stubs
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge

from app.core.errors import InvalidData
from app.core.signature import Task
from workers.context import JobContext, Stopped
from workers.export.graph import Graph, binary_probabilities, value_output
from workers.families.ngrams import Sizes
from workers.families.tfidf import Channel, product_nodes, transform
from workers.families.tokens import Kind
from workers.learning import Array, Inputs, LearningData

# The strongest first: each one begins where the last one ended.
_STRENGTHS: dict[Task, tuple[float, ...]] = {
    "classification": (1.0, 0.3, 0.1, 0.03, 0.01),
    "regression": (10.0, 3.0, 1.0, 0.3, 0.1),
}
_USUAL = 0.1
_FOLDS = 3
_FOLD_VALUES = 20_000_000  # of the matrix; above, one fold says enough
_MOST_CHARACTERS = 30_000_000  # of all training texts: what fits memory and a quarter of an hour
_MOST_WEIGHTS = 5_000_000  # of a channel: the solver holds some twenty times as many numbers
_MAX_ITER = 300
_NEVER = -1e4  # a logit whose probability is 0 in float32


class TextLinear:
    """The family."""

    devices = ("cpu",)

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = params

    def fit(self, data: LearningData, job: JobContext) -> "FittedTextLinear":
        """Learn n-grams, choose a strength by cross-validation within training rows, and solve on all of them.

        Validation rows are not used. There is no checkpoint: a run that was killed starts over.

        Raises:
            InvalidData: no n-gram is in enough training rows.
            Stopped: the job was asked to stop.
        """
        texts, y = _fitting(data, job)
        channels = self._channels(texts, data)
        job.log("learning from " + ", ".join(f"{c.size} n-grams of {c.tokens.kind}" for c in channels))
        job.progress(0.2, "counting n-grams")
        x = transform(channels, texts)
        solver = _Solver(data, job)
        strength, divisor = self.params["regularization"], 1.0
        if strength is None:
            strength, divisor = solver.choose(x, y)
        job.progress(0.7, "solving")
        weights, bias = solver.solve(solver.make(), x, y, strength)
        facts = {
            "rows": len(y),
            "ngrams": {channel.tokens.kind: channel.size for channel in channels},
            "characters_read_of_a_text": channels[0].most,
            "regularization": strength,
            "logits_divided_by": round(divisor, 4),
        }
        weights, bias = (weights / divisor).astype(np.float32), (bias / divisor).astype(np.float32)
        return FittedTextLinear(data, channels, weights, bias, facts)

    def _channels(self, texts: Array, data: LearningData) -> list[Channel]:
        limit = max(1, min(self.params["max_features"], _MOST_WEIGHTS // max(1, data.n_classes)))
        wanted: dict[Kind, Sizes] = {
            "words": Sizes(1, self.params["words"]),
            "characters": Sizes(2, self.params["characters"]),
        }
        found = [
            Channel.learn(kind, sizes, texts, self.params, limit)
            for kind, sizes in wanted.items()
            if sizes.longest >= sizes.shortest
        ]
        if channels := [channel for channel in found if channel.size]:
            return channels
        least = self.params["min_rows"]
        msg = f"no word or character is in {least} training texts; use more rows, or lower params.min_rows"
        raise InvalidData.at("features", msg=msg)


@dataclass(frozen=True, slots=True)
class FittedTextLinear:
    """Weights over the channels' columns: FP32 [columns, outputs]."""

    data: LearningData
    channels: Sequence[Channel]
    weights: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    about: dict[str, Any]

    def predict(self, inputs: Inputs) -> Array:
        """Probabilities [N, K] or values [N]."""
        scores = transform(self.channels, inputs["text"]) @ self.weights.astype(np.float64) + self.bias
        if self.data.task == "regression":
            return self.data.standard.restore(scores[:, 0])
        if scores.shape[1] == 1:
            second = expit(scores)
            return np.concatenate([1 - second, second], axis=1)
        return np.asarray(softmax(scores, axis=1))

    def to_onnx(self) -> onnx.ModelProto:
        """Tokens, look-ups of n-grams, and sums of their weights."""
        graph, signature = Graph(), self.data.signature
        product = product_nodes(graph, self.channels, self.weights)
        score = graph.add("Add", product, graph.constant(self.bias, np.float32))
        if self.data.task == "regression":
            value_output(graph, score, self.data.standard.mean, self.data.standard.scale)
        elif self.weights.shape[1] == 1:
            binary_probabilities(graph, score, is_probability=False)
        else:
            graph.add("Softmax", score, axis=1, output="probabilities")
        return graph.model(signature.inputs, signature.outputs)

    def facts(self) -> dict[str, Any]:
        """N-grams, how much of a text is read, and the strength."""
        return self.about


def _fitting(data: LearningData, job: JobContext) -> tuple[Array, Array]:
    """The training texts and targets, or as many rows, drawn at random, as have _MOST_CHARACTERS."""
    texts, y = data.train.inputs["text"], data.train.y
    total = sum(len(text) for row in texts.tolist() for text in row)
    if total <= _MOST_CHARACTERS:
        return texts, y
    kept = max(1, int(len(y) * _MOST_CHARACTERS / total))
    rows = np.sort(np.random.default_rng(data.training.seed).permutation(len(y))[:kept])
    job.log(f"{kept} of {len(y)} training rows are learnt from, which have {_MOST_CHARACTERS:,} characters", "warning")
    return texts[rows], y[rows]


class _Solver:
    """Solves for weights [columns, outputs] and a bias [outputs], and says which strength does best."""

    def __init__(self, data: LearningData, job: JobContext) -> None:
        self.data, self.job = data, job

    def make(self) -> Any:  # noqa: ANN401 - of scikit-learn, which has no types
        """An estimator that goes on from where its last solution was, if it can."""
        if self.data.task == "regression":
            return Ridge()
        return LogisticRegression(max_iter=_MAX_ITER, warm_start=True)

    def solve(self, estimator: Any, x: sp.csr_matrix, y: Array, strength: float) -> tuple[Array, Array]:  # noqa: ANN401 - the same
        """Weights and bias; a class without a row has probability 0."""
        if self.job.should_stop():
            raise Stopped
        ridge = self.data.task == "regression"
        estimator.set_params(**({"alpha": strength} if ridge else {"C": 1 / strength}))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # near enough: the validation of what it gives decides
            estimator.fit(x, y)
        weights, bias = np.atleast_2d(estimator.coef_).T, np.atleast_1d(estimator.intercept_)
        if ridge or len(estimator.classes_) == self.data.n_classes:
            return weights, bias
        if weights.shape[1] == 1:  # two known classes share one column: their logits are 0 and the score
            weights, bias = np.pad(weights, ((0, 0), (1, 0))), np.pad(bias, (1, 0))
        full, offsets = np.zeros((len(weights), self.data.n_classes)), np.full(self.data.n_classes, _NEVER)
        full[:, estimator.classes_], offsets[estimator.classes_] = weights, bias
        return full, offsets

    def choose(self, x: sp.csr_matrix, y: Array) -> tuple[float, float]:
        """The best strength for rows that were left out, and what their logits are best divided by."""
        parts = self._parts(x, y)
        estimators = [self.make() for _ in parts]
        best = (np.inf, _USUAL, 1.0)
        tried = _STRENGTHS[self.data.task] if parts else ()
        for at, strength in enumerate(tried):
            self.job.progress(0.25 + 0.45 * at / len(tried), f"trying strength {strength:g}")
            answers = []
            for (kept, held), estimator in zip(parts, estimators, strict=True):
                weights, bias = self.solve(estimator, x[kept], y[kept], strength)
                answers.append(x[held] @ weights + bias)
            loss, divisor = self._loss(np.concatenate(answers), y[np.concatenate([held for _, held in parts])])
            self.job.metric("cross_validation_loss", at, loss)
            if loss > best[0]:
                break
            best = (loss, strength, divisor)
        return best[1], best[2]

    def _parts(self, x: sp.csr_matrix, y: Array) -> list[tuple[Array, Array]]:
        """Rows to solve on and rows to judge by, of every class the same share; none where there are too few."""
        order = np.random.default_rng(self.data.training.seed).permutation(len(y))
        if self.data.task == "classification":
            order = order[np.argsort(y[order], kind="stable")]
        fold = np.empty(len(y), np.int64)
        fold[order] = np.arange(len(y)) % _FOLDS
        parts = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(_FOLDS)]
        if x.nnz > _FOLD_VALUES:
            parts = parts[:1]
        if self.data.task == "regression":
            return parts
        # Of a class that is not in the rows to solve on nothing can be known.
        parts = [(kept, held[np.isin(y[held], y[kept])]) for kept, held in parts]
        few = any(len(np.unique(y[kept])) < 2 or not len(held) for kept, held in parts)  # noqa: PLR2004 - one class
        return [] if few else parts

    def _loss(self, scores: Array, y: Array) -> tuple[float, float]:
        """Mean squared error, or the log loss of the logits divided by what is best for it, and that."""
        if self.data.task == "regression":
            return float(np.mean((scores[:, 0] - y) ** 2)), 1.0
        if scores.shape[1] == 1:
            scores = np.pad(scores, ((0, 0), (1, 0)))

        def loss(log_divisor: float) -> float:
            return -float(np.mean(log_softmax(scores / np.exp(log_divisor), axis=1)[np.arange(len(y)), y]))

        found = minimize_scalar(loss, bounds=(-2.0, 2.0), method="bounded")
        return float(found.fun), float(np.exp(found.x))
