"""A linear model on TF-IDF of words and of characters, in any language."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from app.core.errors import InvalidData
from workers.context import JobContext
from workers.export.graph import Graph
from workers.families.answers import answering_model, answers_of
from workers.families.ngrams import Sizes
from workers.families.text_solver import Solver
from workers.families.tfidf import Channel, product_nodes, transform
from workers.families.tokens import Kind
from workers.learning import Array, Inputs, LearningData

_MOST_CHARACTERS = 30_000_000  # of all training texts: what fits memory and a quarter of an hour
_MOST_WEIGHTS = 5_000_000  # of a channel: the solver holds some twenty times as many numbers


class TextLinear:
    """The family."""

    devices = ("cpu",)

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = params

    def fit(self, data: LearningData, job: JobContext) -> "FittedTextLinear":
        """Learn n-grams and their weights.

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
        found = Solver(data, job, self.params["regularization"]).solve(x, y)
        facts = {
            "rows": len(y),
            "ngrams": {channel.tokens.kind: channel.size for channel in channels},
            "characters_read_of_a_text": channels[0].most,
            **found.about,
        }
        return FittedTextLinear(data, channels, found.weights.astype(np.float32), found.bias.astype(np.float32), facts)

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
        return answers_of(self.data, scores)

    def to_onnx(self) -> onnx.ModelProto:
        """Tokens, look-ups of n-grams, and sums of their weights."""
        graph = Graph()
        product = product_nodes(graph, self.channels, self.weights)
        score = graph.add("Add", product, graph.constant(self.bias, np.float32))
        return answering_model(graph, score, self.data, self.weights.shape[1])

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
