"""What networks over texts share: tokens, fitting, answering, and exporting with the tokens' nodes in front."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from workers.context import JobContext
from workers.export.graph import Graph
from workers.families.answers import answering_model, answers_of
from workers.families.network import ColumnLoss
from workers.families.vocabulary import PADDING, TokenReader, Vocabulary
from workers.learning import Array, Inputs, LearningData, Part
from workers.training.batches import Tensors
from workers.training.loop import train
from workers.training.losses import class_loss
from workers.training.rounding import begin_rounding, end_rounding
from workers.training.token_augment import TokenAugment

_BATCH = 256
_SPREAD = 0.1  # of embeddings at first; torch's 1 is more than a few epochs can change


class TokenNetwork(nn.Module):
    """Tokens int64 [N, L], zeros last, to logits or a value [N, outputs]. Padding must not change an answer."""

    def score(self, tokens: Tensor) -> Tensor:
        """The answer, from tokens as they are."""
        raise NotImplementedError

    def to_nodes(self, graph: Graph, tokens: str) -> str:
        """The same as nodes."""
        raise NotImplementedError

    def forward(self, tokens: Tensor) -> Tensor:
        """The answer, without work for columns in which the batch has padding alone."""
        return self.score(tokens[:, : int((tokens != PADDING).sum(dim=1).max())])


def word_table(tokens: int, width: int) -> nn.Embedding:
    """Random embeddings of words, and zeros for the padding."""
    table = nn.Embedding(tokens, width, padding_idx=PADDING)
    with torch.no_grad():
        table.weight.mul_(_SPREAD)
    return table


class TextNetworkFamily:
    """A family whose models are one kind of network over tokens; a subclass names it."""

    devices = ("cpu", "cuda")
    network: Callable[[int, int, Mapping[str, Any]], TokenNetwork]  # (known tokens, outputs, params)

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = params
        self.about: dict[str, Any] = {}  # for the model card

    def reader(self, texts: Array, job: JobContext) -> TokenReader:  # noqa: ARG002 - for weights that a job may read
        """What makes tokens of texts, from those of training, str objects [N, t]."""
        return Vocabulary.learn(texts, self.params)

    def make(self, reader: TokenReader, outputs: int, job: JobContext) -> TokenNetwork:  # noqa: ARG002 - the same
        """An untrained network."""
        return type(self).network(reader.size, outputs, self.params)

    def settle(self, network: TokenNetwork) -> None:
        """Make a trained network what is exported, if it is not."""

    def fit(self, data: LearningData, job: JobContext) -> "FittedText":
        """Learn words, then train with early stopping on the validation loss; resumes from the job's checkpoint.

        Raises:
            InvalidData: no word is in enough training rows.
            Stopped: the job was asked to stop.
        """
        reader = self.reader(data.train.inputs["text"], job)
        return self._train(reader, lambda: self.make(reader, outputs_of(data), job), data, job)

    def teach(self, fitted: "FittedText", data: LearningData, job: JobContext) -> "FittedText":
        """Train a network that is there, as `fit` does; it is changed."""
        return self._train(fitted.reader, lambda: fitted.network, data, job)

    def teach_rounded(
        self, fitted: "FittedText", operators: Collection[str], data: LearningData, job: JobContext
    ) -> "FittedText":
        """`teach` while layers round as these ONNX operators do in int8."""
        begin_rounding(fitted.network, operators)
        taught = self.teach(fitted, data, job)
        end_rounding(fitted.network)
        return taught

    def _train(
        self, reader: TokenReader, make: Callable[[], TokenNetwork], data: LearningData, job: JobContext
    ) -> "FittedText":
        learn, watch = _tensors(reader, data.train), _tensors(reader, data.validation)
        torch.manual_seed(data.training.seed)
        network = make()
        loss = ColumnLoss() if data.task == "regression" else class_loss(data)
        change, asked = None, data.training.augment
        if asked is not None:
            change = TokenAugment(asked, reader.unknown, reader.fixed)
        facts = train(network, loss, learn, watch, data.training, job, data.threads, data.device, change)
        self.settle(network)
        return FittedText(data, reader, network, facts | self.about | _about(reader, learn.inputs[0], network))


@dataclass(frozen=True, slots=True)
class FittedText:
    """A trained network in evaluation mode."""

    data: LearningData
    reader: TokenReader
    network: TokenNetwork
    fit_facts: dict[str, Any]

    def predict(self, inputs: Inputs) -> Array:
        """Probabilities [N, K] or values [N]."""
        tokens = torch.from_numpy(self.reader.transform(inputs["text"]))
        with torch.inference_mode():
            scores = torch.cat([self.network(tokens[i : i + _BATCH]) for i in range(0, len(tokens), _BATCH)])
        return answers_of(self.data, np.asarray(scores.numpy()))

    def to_onnx(self) -> onnx.ModelProto:
        """Tokens and the network over them."""
        graph = Graph()
        score = self.network.to_nodes(graph, self.reader.to_nodes(graph))
        return answering_model(graph, score, self.data, self.data.n_classes)

    def facts(self) -> dict[str, Any]:
        """Epochs, the best one, words, how much of a row is read, and number of weights."""
        return self.fit_facts


def outputs_of(data: LearningData) -> int:
    """Logits of a row, or its one value."""
    return 1 if data.task == "regression" else data.n_classes


def _tensors(reader: TokenReader, part: Part) -> Tensors:
    y = torch.from_numpy(part.y)
    tokens = torch.from_numpy(reader.transform(part.inputs["text"]))
    return Tensors((tokens,), y.float() if y.is_floating_point() else y)


def _about(reader: TokenReader, tokens: Tensor, network: nn.Module) -> dict[str, Any]:
    read = int((tokens != PADDING).sum())
    return {
        "vocabulary": reader.size,
        "unknown_words": round(float((tokens == reader.unknown).sum()) / max(1, read), 4),
        "tokens_read_of_a_row": reader.max_tokens,
        "characters_read_of_a_text": reader.max_characters,
        "weights": sum(p.numel() for p in network.parameters()),
    }
