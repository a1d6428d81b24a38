"""Feature-tokenizer transformer (torch): every column is a token, and attention mixes them.

Gorishniy and others, Revisiting deep learning models for tabular data (2021); but the answer is read from the mean of
the tokens, which spares the graph a token that stands for no column.
"""

import math
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
from workers.families.network import loss_of, numbers, outputs_of, settle_unseen, tensors_of
from workers.learning import Array, Inputs, LearningData, rows_of
from workers.training.loop import train

_BATCH = 2048  # rows of one prediction: attention needs memory for each pair of columns
_FEED_FORWARD = 2  # times as wide as the tokens


class Block(nn.Module):
    """Attention, then two layers for each token by itself; both add to what comes in: [N, T, D] to [N, T, D]."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_layers = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, _FEED_FORWARD * width), nn.Linear(_FEED_FORWARD * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """The tokens after the block."""
        n, t, d = tokens.shape
        mixed = self.query_key_value(self.before_attention(tokens))
        query, key, value = mixed.view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.dropout(self.out(attended.transpose(1, 2).reshape(n, t, d)))
        layers = self.narrow(self.dropout(nn.functional.gelu(self.widen(self.before_layers(tokens)))))
        answer: Tensor = tokens + self.dropout(layers)
        return answer

    def to_nodes(self, graph: Graph, tokens: str) -> str:
        """The same as nodes."""
        heads, size = self.heads, self.out.in_features // self.heads
        mixed = _linear(graph, self.query_key_value, _norm(graph, self.before_attention, tokens))
        split = graph.add("Reshape", mixed, graph.constant([0, 0, 3, heads, size], np.int64))
        apart = graph.add("Transpose", split, perm=[2, 0, 3, 1, 4])
        query, key, value = (graph.add("Gather", apart, graph.constant(i, np.int64), axis=0) for i in range(3))
        scaled = graph.add("Mul", query, graph.constant([1 / math.sqrt(size)], np.float32))
        scores = graph.add("MatMul", scaled, graph.add("Transpose", key, perm=[0, 1, 3, 2]))
        attended = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), value)
        joined = graph.add("Transpose", attended, perm=[0, 2, 1, 3])
        flat = graph.add("Reshape", joined, graph.constant([0, 0, heads * size], np.int64))
        tokens = graph.add("Add", tokens, _linear(graph, self.out, flat))
        wide = graph.add("Gelu", _linear(graph, self.widen, _norm(graph, self.before_layers, tokens)))
        return graph.add("Add", tokens, _linear(graph, self.narrow, wide))


class Network(nn.Module):
    """Dense [N, width] and table rows [N, columns] to logits or a value [N, outputs]."""

    def __init__(self, encoder: DenseEncoder, outputs: int, params: Mapping[str, Any]) -> None:
        super().__init__()
        width, spread = params["width"], 1 / math.sqrt(params["width"])
        self.scale = nn.Parameter(torch.empty(encoder.width, width).uniform_(-spread, spread))
        self.shift = nn.Parameter(torch.empty(encoder.width + encoder.columns, width).uniform_(-spread, spread))
        self.table = nn.Embedding(max(1, encoder.table_rows), width)
        nn.init.uniform_(self.table.weight, -spread, spread)
        self.blocks = nn.ModuleList(Block(width, params["heads"], params["dropout"]) for _ in range(params["blocks"]))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs)

    def forward(self, dense: Tensor, rows: Tensor) -> Tensor:
        """Logits or a value."""
        tokens = torch.cat([dense[:, :, None] * self.scale, self.table(rows)], dim=1) + self.shift
        for block in self.blocks:
            tokens = block(tokens)
        answer: Tensor = self.head(nn.functional.relu(self.norm(tokens.mean(dim=1))))
        return answer

    def to_nodes(self, graph: Graph, dense: str | None, rows: str | None) -> str:
        """The same as nodes."""
        parts = []
        if dense is not None:
            column = graph.add("Unsqueeze", dense, graph.constant([2], np.int64))
            parts.append(graph.add("Mul", column, graph.constant(numbers(self.scale), np.float32)))
        if rows is not None:
            table = graph.constant(numbers(self.table.weight), np.float32)
            parts.append(graph.add("Gather", table, rows, axis=0))
        tokens = parts[0] if len(parts) == 1 else graph.add("Concat", *parts, axis=1)
        tokens = graph.add("Add", tokens, graph.constant(numbers(self.shift), np.float32))
        for block in self.blocks:
            tokens = block.to_nodes(graph, tokens)  # type: ignore[operator]  # a module list forgets what it holds
        mean = graph.add("ReduceMean", tokens, graph.constant([1], np.int64), keepdims=0)
        return _linear(graph, self.head, graph.add("Relu", _norm(graph, self.norm, mean)))


def _linear(graph: Graph, layer: nn.Linear, value: str) -> str:
    product = graph.add("MatMul", value, graph.constant(numbers(layer.weight).T, np.float32))
    return graph.add("Add", product, graph.constant(numbers(layer.bias), np.float32))


def _norm(graph: Graph, norm: nn.LayerNorm, value: str) -> str:
    weight, bias = (graph.constant(numbers(p), np.float32) for p in (norm.weight, norm.bias))
    return graph.add("LayerNormalization", value, weight, bias, axis=-1, epsilon=norm.eps)


class FtTransformer:
    """The family."""

    devices = ("cpu", "cuda")

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = params

    def fit(self, data: LearningData, job: JobContext) -> "FittedFtTransformer":
        """Train with early stopping on the validation loss; resumes from the job's checkpoint."""
        torch.manual_seed(data.training.seed)
        encoder = DenseEncoder.fit(data)
        network = Network(encoder, outputs_of(data), self.params)
        learn, watch = tensors_of(encoder, data.train), tensors_of(encoder, data.validation)
        facts = train(network, loss_of(data), learn, watch, data.training, job, data.threads, data.device)
        settle_unseen(network.table, encoder, learn.inputs[1])
        weights = sum(p.numel() for p in network.parameters())
        return FittedFtTransformer(data, encoder, network, {**facts, "weights": weights})


@dataclass(frozen=True, slots=True)
class FittedFtTransformer:
    """A trained network in evaluation mode."""

    data: LearningData
    encoder: DenseEncoder
    network: Network
    fit_facts: dict[str, Any]

    def predict(self, inputs: Inputs) -> Array:
        """Probabilities [N, K] or values [N]."""
        dense, rows = (torch.from_numpy(array) for array in self.encoder.transform(inputs))
        with torch.inference_mode():
            parts = [
                self.network(dense[i : i + _BATCH], rows[i : i + _BATCH]) for i in range(0, rows_of(inputs), _BATCH)
            ]
        answer = torch.cat(parts)
        if self.data.task == "regression":
            return self.data.standard.restore(answer[:, 0].numpy())
        return np.asarray(answer.softmax(dim=1).numpy())

    def to_onnx(self) -> onnx.ModelProto:
        """Node by node."""
        graph, signature = Graph(), self.data.signature
        value = self.network.to_nodes(graph, *self.encoder.to_nodes(graph))
        if self.data.task == "regression":
            value_output(graph, value, self.data.standard.mean, self.data.standard.scale)
        else:
            graph.add("Softmax", value, axis=1, output="probabilities")
        return graph.model(signature.inputs, signature.outputs)

    def facts(self) -> dict[str, Any]:
        """Epochs, the best one, and number of weights."""
        return self.fit_facts
