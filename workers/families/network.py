"""What networks over tables share: fitting, answering, exporting, and what an unseen category means to them."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from workers.context import JobContext
from workers.export.graph import Graph
from workers.families.answers import answering_model, answers_of
from workers.families.encoding import DenseEncoder
from workers.learning import Array, Inputs, LearningData, Part, RowGroups, rows_of
from workers.training.batches import Tensors, Window, joined
from workers.training.loop import train
from workers.training.losses import class_loss

_GROUPS = 8  # groups of streamed rows that are shuffled together
_BATCH = 2048  # rows of one prediction: attention needs memory for each pair of columns


class TableNetwork(nn.Module):
    """Dense [N, width] and table rows [N, columns] to logits or a value [N, outputs]; `table` embeds categories."""

    table: nn.Embedding

    def __init__(self, encoder: DenseEncoder, outputs: int, params: Mapping[str, Any], seen: Array) -> None:
        """A network with random weights; `seen` is the dense part of the training rows."""
        del encoder, outputs, params, seen
        super().__init__()

    def to_nodes(self, graph: Graph, encoder: DenseEncoder, dense: str | None, rows: str | None) -> str:
        """The same as nodes."""
        raise NotImplementedError


class NetworkFamily:
    """A family whose models are one kind of network."""

    devices = ("cpu", "cuda")
    network: ClassVar[type[TableNetwork]]

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = params

    def fit(self, data: LearningData, job: JobContext) -> "FittedNetwork":
        """Train with early stopping on the validation loss; resumes from the job's checkpoint."""
        torch.manual_seed(data.training.seed)
        encoder = DenseEncoder.fit(data)
        learn, watch = _tensors(encoder, data.train), _tensors(encoder, data.validation)
        regression = data.task == "regression"
        outputs = 1 if regression else data.n_classes
        network = self.network(encoder, outputs, self.params, learn.inputs[0].numpy())
        loss = ColumnLoss() if regression else class_loss(data)
        rows = learn if data.streamed is None else StreamedRows(data.streamed, encoder)
        facts = train(network, loss, rows, watch, data.training, job, data.threads, data.device)
        _settle_unseen(network.table, encoder, learn.inputs[1], data.streamed)
        weights = sum(p.numel() for p in network.parameters())
        return FittedNetwork(data, encoder, network, {**facts, "weights": weights})


@dataclass(frozen=True, slots=True)
class FittedNetwork:
    """A trained network in evaluation mode."""

    data: LearningData
    encoder: DenseEncoder
    network: TableNetwork
    fit_facts: dict[str, Any]

    def predict(self, inputs: Inputs) -> Array:
        """Probabilities [N, K] or values [N]."""
        dense, rows = (torch.from_numpy(array) for array in self.encoder.transform(inputs))
        with torch.inference_mode():
            parts = [
                self.network(dense[i : i + _BATCH], rows[i : i + _BATCH]) for i in range(0, rows_of(inputs), _BATCH)
            ]
        return answers_of(self.data, np.asarray(torch.cat(parts).numpy()))

    def to_onnx(self) -> onnx.ModelProto:
        """Node by node: few of them, so that one row costs microseconds."""
        graph = Graph()
        score = self.network.to_nodes(graph, self.encoder, *self.encoder.to_nodes(graph))
        return answering_model(graph, score, self.data, self.data.n_classes)

    def facts(self) -> dict[str, Any]:
        """Epochs, the best one, and number of weights."""
        return self.fit_facts


@dataclass(frozen=True, slots=True)
class StreamedRows:
    """Training rows that are read while a network learns: some groups of them are shuffled together.

    The groups of the next window are read by a thread meanwhile.
    """

    groups: RowGroups
    encoder: DenseEncoder

    def __len__(self) -> int:
        return len(self.groups)

    def windows(self, seed: int | None, epoch: int) -> Iterator[Window]:
        """All rows once; seed and epoch draw the order of the groups, and that of the rows within a window."""
        order = np.arange(len(self.groups.sizes))
        if seed is not None:
            np.random.default_rng([seed, epoch]).shuffle(order)
        chosen = [order[at : at + _GROUPS] for at in range(0, len(order), _GROUPS)]
        with ThreadPoolExecutor(1, "read-rows") as reader:
            coming = reader.submit(self._read, chosen[0])
            for number in range(len(chosen)):
                rows = coming.result()
                if number + 1 < len(chosen):
                    coming = reader.submit(self._read, chosen[number + 1])
                yield Window.shuffled(rows, seed, epoch * len(chosen) + number)

    def _read(self, groups: Array) -> Tensors:
        return joined([_tensors(self.encoder, self.groups.read(int(at))) for at in groups])


class ColumnLoss(nn.Module):
    """Mean squared error of answers [N, 1] and targets [N]."""

    def forward(self, answers: Tensor, y: Tensor) -> Tensor:
        """The loss, a scalar."""
        return nn.functional.mse_loss(answers[:, 0], y)


def _tensors(encoder: DenseEncoder, part: Part) -> Tensors:
    """Dense FP32 [N, width], table rows int64 [N, columns], and the target."""
    dense, rows = encoder.transform(part.inputs)
    y = torch.from_numpy(part.y)
    return Tensors((torch.from_numpy(dense), torch.from_numpy(rows)), y.float() if y.is_floating_point() else y)


def _settle_unseen(table: nn.Embedding, encoder: DenseEncoder, rows: Tensor, streamed: RowGroups | None = None) -> None:
    """An unseen category gets its column's mean embedding, where training never met one.

    It did where a column has more categories than have a row of their own, or rows on disk have other ones than `rows`.
    """
    unseen = encoder.unseen_rows()
    met = (rows.numpy() == unseen).any(axis=0)
    for group in range(len(streamed.sizes) if streamed is not None else 0):
        if streamed is None or met.all():
            break
        met |= (encoder.transform(streamed.read(group).inputs)[1] == unseen).any(axis=0)
    with torch.no_grad():
        for column in np.flatnonzero(~met).tolist():
            table.weight[unseen[column]] = table(rows[:, column]).mean(dim=0)


def numbers(tensor: Tensor) -> Array:
    """A parameter as numpy."""
    array: Array = tensor.detach().numpy()
    return array
