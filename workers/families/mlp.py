"""Multi-layer perceptron with embeddings for categories (torch)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workers.export.graph import Graph
from workers.families.encoding import DenseEncoder
from workers.families.network import NetworkFamily, TableNetwork, numbers
from workers.learning import Array

_EMBEDDING = 8
_NARROW = 1e-4  # of standardised numbers: a bin between two edges this close is none
_ACTIVATIONS: Mapping[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


class Bins(nn.Module):
    """Numbers [N, n] to [N, n * bins]: how far each is through each bin, 0 below and 1 above it.

    Gorishniy and others, On embeddings for numerical features in tabular deep learning (2022).
    """

    low: Tensor  # [n, bins]
    inverse_width: Tensor  # [n, bins]; 0 for a bin without width

    def __init__(self, numbers_seen: Array, bins: int) -> None:
        super().__init__()
        edges = np.quantile(numbers_seen.astype(np.float64), np.linspace(0, 1, bins + 1), axis=0).T  # [n, bins + 1]
        width = np.diff(edges, axis=1)
        inverse = np.divide(1, width, out=np.zeros_like(width), where=width > _NARROW)
        self.register_buffer("low", torch.from_numpy(edges[:, :-1].astype(np.float32)))
        self.register_buffer("inverse_width", torch.from_numpy(inverse.astype(np.float32)))

    def forward(self, values: Tensor) -> Tensor:
        """Shares of bins, 0..1."""
        return ((values[:, :, None] - self.low) * self.inverse_width).clamp(0, 1).flatten(1)

    def to_nodes(self, graph: Graph, values: str) -> str:
        """The same as nodes."""
        column = graph.add("Unsqueeze", values, graph.constant([2], np.int64))
        above = graph.add("Sub", column, graph.constant(numbers(self.low), np.float32))
        shares = graph.add("Mul", above, graph.constant(numbers(self.inverse_width), np.float32))
        bounds = [graph.constant(bound, np.float32) for bound in (0.0, 1.0)]
        return graph.add(
            "Reshape", graph.add("Clip", shares, *bounds), graph.constant([-1, self.low.numel()], np.int64)
        )


class Residual(nn.Module):
    """A layer with a way around it: [N, width] to [N, units].

    Two layers behind a norm add to what comes in, as in ResNets for tables (Gorishniy and others 2021); where the width
    changes, what comes in goes through a projection first (He and others 2016).
    """

    def __init__(self, width: int, units: int, activation: nn.Module, dropout: nn.Module) -> None:
        super().__init__()
        self.project = nn.Linear(width, units) if width != units else None
        self.norm, self.first, self.second = nn.LayerNorm(units), nn.Linear(units, units), nn.Linear(units, units)
        self.activation, self.dropout = activation, dropout

    def forward(self, x: Tensor) -> Tensor:
        """What comes in, and what the layers add."""
        if self.project is not None:
            x = self.project(x)
        added: Tensor = self.dropout(self.second(self.dropout(self.activation(self.first(self.norm(x))))))
        return x + added

    def to_nodes(self, graph: Graph, value: str) -> str:
        """The same as nodes."""
        if self.project is not None:
            value = _node(graph, self.project, value)
        weight, bias = (graph.constant(numbers(p), np.float32) for p in (self.norm.weight, self.norm.bias))
        added = graph.add("LayerNormalization", value, weight, bias, axis=-1, epsilon=self.norm.eps)
        for part in (self.first, self.activation, self.second):
            added = _node(graph, part, added)
        return graph.add("Add", value, added)


class Network(TableNetwork):
    """Layers over numbers, their bins, and embedded categories."""

    def __init__(self, encoder: DenseEncoder, outputs: int, params: Mapping[str, Any], seen: Array) -> None:
        super().__init__(encoder, outputs, params, seen)
        self.bins = Bins(seen[:, : len(encoder.mean)], params["bins"]) if params["bins"] and len(encoder.mean) else None
        self.table = nn.Embedding(max(1, encoder.table_rows), _EMBEDDING)
        nn.init.normal_(self.table.weight, std=0.1)
        self.layers = nn.Sequential()
        width = encoder.width + _EMBEDDING * encoder.columns + (self.bins.low.numel() if self.bins else 0)
        for units in params["hidden"]:
            activation, dropout = _ACTIVATIONS[params["activation"]](), nn.Dropout(params["dropout"])
            if params["residual"]:
                self.layers.append(Residual(width, units, activation, dropout))
            else:
                self.layers.extend([nn.Linear(width, units), activation, dropout])
            width = units
        self.layers.append(nn.Linear(width, outputs))

    def forward(self, dense: Tensor, rows: Tensor) -> Tensor:
        """Logits or a value."""
        embedded = self.table(rows).flatten(1)  # [N, columns * _EMBEDDING]
        parts = [dense, embedded]
        if self.bins is not None:
            parts.append(self.bins(dense[:, : len(self.bins.low)]))
        answer: Tensor = self.layers(torch.cat(parts, dim=1))
        return answer

    def to_nodes(self, graph: Graph, encoder: DenseEncoder, dense: str | None, rows: str | None) -> str:
        """The same as nodes."""
        parts = [dense] if dense is not None else []
        if rows is not None:
            table = graph.constant(numbers(self.table.weight), np.float32)
            picked = graph.add("Gather", table, rows, axis=0)
            shape = graph.constant([-1, encoder.columns * _EMBEDDING], np.int64)
            parts.append(graph.add("Reshape", picked, shape))
        if self.bins is not None and dense is not None:
            count = len(self.bins.low)
            ends = [graph.constant([end], np.int64) for end in (0, count, 1)]
            values = dense if count == encoder.width else graph.add("Slice", dense, *ends)
            parts.append(self.bins.to_nodes(graph, values))
        value = parts[0] if len(parts) == 1 else graph.add("Concat", *parts, axis=1)
        for layer in self.layers:
            value = layer.to_nodes(graph, value) if isinstance(layer, Residual) else _node(graph, layer, value)
        return value


class Mlp(NetworkFamily):
    """The family."""

    network = Network


def _node(graph: Graph, layer: nn.Module, value: str) -> str:
    match layer:
        case nn.Linear():
            weight = graph.constant(numbers(layer.weight).T, np.float32)
            return graph.add("Gemm", value, weight, graph.constant(numbers(layer.bias), np.float32))
        case nn.ReLU():
            return graph.add("Relu", value)
        case nn.SiLU():
            return graph.add("Mul", value, graph.add("Sigmoid", value))
        case nn.GELU():
            return graph.add("Gelu", value)
        case _:  # dropout does nothing in evaluation mode
            return value
