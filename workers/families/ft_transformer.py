"""Feature-tokenizer transformer (torch): every column is a token, and attention mixes them.

Gorishniy and others, Revisiting deep learning models for tabular data (2021); but the answer is read from the mean of
the tokens, which spares the graph a token that stands for no column.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workers.export.graph import Graph
from workers.families.encoding import DenseEncoder
from workers.families.network import NetworkFamily, TableNetwork, numbers
from workers.learning import Array

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


class Network(TableNetwork):
    """Tokens of numbers and categories, blocks over them, and their mean."""

    def __init__(self, encoder: DenseEncoder, outputs: int, params: Mapping[str, Any], seen: Array) -> None:
        super().__init__(encoder, outputs, params, seen)
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

    def recomputable(self) -> list[nn.Module]:
        """The blocks of attention."""
        return list(self.blocks)

    def to_nodes(self, graph: Graph, encoder: DenseEncoder, dense: str | None, rows: str | None) -> str:  # noqa: ARG002 - its own weights know the sizes
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


class FtTransformer(NetworkFamily):
    """The family."""

    network = Network
