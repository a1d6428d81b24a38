"""Convolutions over words (torch).

Kim, Convolutional neural networks for sentence classification (2014).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workers.export.graph import Graph
from workers.families.network import numbers
from workers.families.sequences import TextNetworkFamily, TokenNetwork, word_table
from workers.families.token_nodes import embedded_nodes, linear_nodes, mask_nodes
from workers.families.vocabulary import PADDING


class Network(TokenNetwork):
    """Filters of several windows, the largest answer of each, and a linear layer.

    A window begins at each token and may reach into the padding, whose embedding is zero. After the rectifier no answer
    is below zero, so zeros in the place of windows that begin in the padding change no maximum.
    """

    def __init__(self, tokens: int, outputs: int, params: Mapping[str, Any]) -> None:
        super().__init__()
        width, filters, windows = params["width"], params["filters"], params["windows"]
        self.table = word_table(tokens, width)
        self.windows = windows
        self.filters = nn.ModuleList(nn.Conv1d(width, filters, window) for window in windows)
        self.dropout = nn.Dropout(params["dropout"])
        self.last = nn.Linear(filters * len(windows), outputs)

    def score(self, tokens: Tensor) -> Tensor:
        """Logits or a value."""
        x = self.dropout(self.table(tokens)).transpose(1, 2)  # [N, width, L]
        mask = (tokens != PADDING).to(x.dtype)[:, None]
        found = [
            (torch.relu(layer(nn.functional.pad(x, (0, window - 1)))) * mask).amax(dim=2)
            for window, layer in zip(self.windows, self.filters, strict=True)
        ]
        answer: Tensor = self.last(self.dropout(torch.cat(found, dim=1)))
        return answer

    def to_nodes(self, graph: Graph, tokens: str) -> str:
        """The same as nodes."""
        x = graph.add("Transpose", embedded_nodes(graph, self.table, tokens), perm=[0, 2, 1])
        mask = graph.add("Unsqueeze", mask_nodes(graph, tokens), graph.constant([1], np.int64))
        found, axis = [], graph.constant([2], np.int64)
        for window, layer in zip(self.windows, self.filters, strict=True):
            weights = [graph.constant(numbers(part), np.float32) for part in layer.parameters()]
            answer = graph.add("Relu", graph.add("Conv", x, *weights, pads=[0, window - 1]))
            found.append(graph.add("ReduceMax", graph.add("Mul", answer, mask), axis, keepdims=0))
        joined = found[0] if len(found) == 1 else graph.add("Concat", *found, axis=1)
        return linear_nodes(graph, self.last, joined)


class TextCnn(TextNetworkFamily):
    """The family."""

    network = Network
