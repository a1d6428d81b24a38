"""Multi-layer perceptron with embeddings for categories (torch)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from workers.context import JobContext
from workers.export.graph import Graph, value_output
from workers.families.encoding import DenseEncoder
from workers.learning import Array, Inputs, LearningData, Part
from workers.training.batches import Tensors
from workers.training.loop import train

_EMBEDDING = 8
_ACTIVATIONS: Mapping[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


class Network(nn.Module):
    """Dense [N, width] and table rows [N, columns] to logits or a value [N, outputs]."""

    def __init__(self, encoder: DenseEncoder, outputs: int, params: Mapping[str, Any]) -> None:
        super().__init__()
        self.table = nn.Embedding(max(1, encoder.table_rows), _EMBEDDING)
        nn.init.normal_(self.table.weight, std=0.1)
        self.layers = nn.Sequential()
        width = encoder.width + _EMBEDDING * encoder.columns
        for units in params["hidden"]:
            activation = _ACTIVATIONS[params["activation"]]()
            self.layers.extend([nn.Linear(width, units), activation, nn.Dropout(params["dropout"])])
            width = units
        self.layers.append(nn.Linear(width, outputs))

    def forward(self, dense: Tensor, rows: Tensor) -> Tensor:
        """Logits or a value."""
        embedded = self.table(rows).flatten(1)  # [N, columns * _EMBEDDING]
        answer: Tensor = self.layers(torch.cat([dense, embedded], dim=1))
        return answer


class Mlp:
    """The family."""

    devices = ("cpu", "cuda")

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = params

    def fit(self, data: LearningData, job: JobContext) -> "FittedMlp":
        """Train with early stopping on the validation loss; resumes from the job's checkpoint."""
        torch.manual_seed(data.training.seed)
        encoder = DenseEncoder.fit(data)
        network = Network(encoder, 1 if data.task == "regression" else data.n_classes, self.params)
        loss: nn.Module = _ColumnLoss() if data.task == "regression" else nn.CrossEntropyLoss()
        learn, watch = _tensors(encoder, data.train), _tensors(encoder, data.validation)
        facts = train(network, loss, learn, watch, data.training, job, data.threads, data.device)
        _settle_unseen(network, encoder, learn.inputs[1])
        return FittedMlp(data, encoder, network, {**facts, "weights": sum(p.numel() for p in network.parameters())})


class _ColumnLoss(nn.Module):
    """Mean squared error of answers [N, 1] and targets [N]."""

    def forward(self, answers: Tensor, y: Tensor) -> Tensor:
        """The loss, a scalar."""
        return nn.functional.mse_loss(answers[:, 0], y)


def _tensors(encoder: DenseEncoder, part: Part) -> Tensors:
    dense, rows = encoder.transform(part.inputs)
    y = torch.from_numpy(part.y)
    return Tensors((torch.from_numpy(dense), torch.from_numpy(rows)), y.float() if y.is_floating_point() else y)


def _settle_unseen(network: Network, encoder: DenseEncoder, rows: Tensor) -> None:
    """An unseen category gets its column's mean embedding, for training never met it."""
    with torch.no_grad():
        for column, row in enumerate(encoder.unseen_rows().tolist()):
            network.table.weight[row] = network.table(rows[:, column]).mean(dim=0)


@dataclass(frozen=True, slots=True)
class FittedMlp:
    """A trained network in evaluation mode."""

    data: LearningData
    encoder: DenseEncoder
    network: Network
    fit_facts: dict[str, Any]

    def predict(self, inputs: Inputs) -> Array:
        """Probabilities [N, K] or values [N]."""
        dense, rows = self.encoder.transform(inputs)
        with torch.inference_mode():
            answer = self.network(torch.from_numpy(dense), torch.from_numpy(rows))
        if self.data.task == "regression":
            return self.data.standard.restore(answer[:, 0].numpy())
        return np.asarray(answer.softmax(dim=1).numpy())

    def to_onnx(self) -> onnx.ModelProto:
        """Node by node: few of them, so that one row costs microseconds."""
        graph = Graph()
        dense, rows = self.encoder.to_nodes(graph)
        parts = [dense] if dense is not None else []
        if rows is not None:
            table = graph.constant(self.network.table.weight.detach().numpy(), np.float32)
            picked = graph.add("Gather", table, rows, axis=0)
            shape = graph.constant([-1, self.encoder.columns * _EMBEDDING], np.int64)
            parts.append(graph.add("Reshape", picked, shape))
        value = parts[0] if len(parts) == 1 else graph.add("Concat", *parts, axis=1)
        for layer in self.network.layers:
            value = _node(graph, layer, value)
        signature = self.data.signature
        if self.data.task == "regression":
            value_output(graph, value, self.data.standard.mean, self.data.standard.scale)
        else:
            graph.add("Softmax", value, axis=1, output="probabilities")
        return graph.model(signature.inputs, signature.outputs)

    def facts(self) -> dict[str, Any]:
        """Epochs, the best one, and number of weights."""
        return self.fit_facts


def _node(graph: Graph, layer: nn.Module, value: str) -> str:
    match layer:
        case nn.Linear():
            weight = graph.constant(layer.weight.detach().numpy().T, np.float32)
            return graph.add("Gemm", value, weight, graph.constant(layer.bias.detach().numpy(), np.float32))
        case nn.ReLU():
            return graph.add("Relu", value)
        case nn.SiLU():
            return graph.add("Mul", value, graph.add("Sigmoid", value))
        case nn.GELU():
            return graph.add("Gelu", value)
        case _:  # dropout does nothing in evaluation mode
            return value
