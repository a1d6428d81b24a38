"""Recurrent networks over words (torch): LSTM (Hochreiter and Schmidhuber 1997) or GRU (Cho and others 2014)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from workers.export.graph import Graph
from workers.families.network import numbers
from workers.families.sequences import TextNetworkFamily, TokenNetwork, word_table
from workers.families.token_nodes import embedded_nodes, linear_nodes, mask_nodes
from workers.families.vocabulary import PADDING
from workers.learning import Array

_CELLS: Mapping[str, type[nn.LSTM | nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}
_GATES = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}  # torch has i f g o, and r z n; ONNX i o f g, and z r n
_LOW = 2.0  # what cells remember is between -1 and 1


class Network(TokenNetwork):
    """Layers of cells, the mean and the largest of what they say at each word, and a linear layer."""

    def __init__(self, tokens: int, outputs: int, params: Mapping[str, Any]) -> None:
        super().__init__()
        self.cell, both, deep = params["cell"], params["bidirectional"], params["depth"] > 1
        self.table = word_table(tokens, params["width"])
        self.cells = _CELLS[self.cell](
            params["width"], params["units"], params["depth"], batch_first=True, bidirectional=both,
            dropout=params["dropout"] if deep else 0.0,
        )  # fmt: skip
        self.dropout = nn.Dropout(params["dropout"])
        self.last = nn.Linear(2 * params["units"] * (2 if both else 1), outputs)

    def score(self, tokens: Tensor) -> Tensor:
        """Logits or a value."""
        mask = (tokens != PADDING)[:, :, None]
        lengths = mask.sum(dim=1)  # [N, 1]
        x = self.dropout(self.table(tokens))
        packed = pack_padded_sequence(x, lengths[:, 0].cpu(), batch_first=True, enforce_sorted=False)
        said, _ = pad_packed_sequence(self.cells(packed)[0], batch_first=True, total_length=tokens.shape[1])
        found = [said.sum(dim=1) / lengths, said.masked_fill(~mask, -_LOW).amax(dim=1)]
        answer: Tensor = self.last(self.dropout(torch.cat(found, dim=1)))
        return answer

    def to_nodes(self, graph: Graph, tokens: str) -> str:
        """The same as nodes."""
        mask, time = mask_nodes(graph, tokens), graph.constant([1], np.int64)
        length = graph.add("ReduceSum", mask, time)  # [N, 1]
        lengths = graph.add("Cast", graph.add("Squeeze", length, time), to=TensorProto.INT32)
        said = graph.add("Transpose", embedded_nodes(graph, self.table, tokens), perm=[1, 0, 2])  # [L, N, width]
        for layer in range(self.cells.num_layers):
            said = self._layer_nodes(graph, layer, said, lengths)
        said = graph.add("Transpose", said, perm=[1, 0, 2])
        present = graph.add("Unsqueeze", mask, graph.constant([2], np.int64))
        said = graph.add("Mul", said, present)
        sunk = graph.add(
            "Mul", graph.add("Sub", present, graph.constant(1, np.float32)), graph.constant(_LOW, np.float32)
        )
        mean = graph.add("Div", graph.add("ReduceSum", said, time, keepdims=0), length)
        most = graph.add("ReduceMax", graph.add("Add", said, sunk), time, keepdims=0)
        return linear_nodes(graph, self.last, graph.add("Concat", mean, most, axis=1))

    def _layer_nodes(self, graph: Graph, layer: int, x: str, lengths: str) -> str:
        """From [L, N, width] to what the layer's directions say, [L, N, directions * units]."""
        ways = ["", "_reverse"] if self.cells.bidirectional else [""]
        names = [[f"{name}_l{layer}{way}" for way in ways] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        parts = [np.stack([self._gates(name) for name in both]) for both in names]
        weights = [*parts[:2], np.concatenate(parts[2:], axis=1)]
        constants = [graph.constant(weight, np.float32) for weight in weights]
        more: dict[str, Any] = {"linear_before_reset": 1} if self.cell == "gru" else {}
        said = graph.add(
            self.cell.upper(), x, *constants, lengths, hidden_size=self.cells.hidden_size,
            direction="bidirectional" if len(ways) > 1 else "forward", **more,
        )  # fmt: skip
        turned = graph.add("Transpose", said, perm=[0, 2, 1, 3])  # [L, N, directions, units]
        return graph.add("Reshape", turned, graph.constant([0, 0, -1], np.int64))

    def _gates(self, name: str) -> Array:
        """A weight whose gates stand in ONNX's order."""
        weight, order = numbers(getattr(self.cells, name)), _GATES[self.cell]
        return np.concatenate([np.split(weight, len(order))[gate] for gate in order])


class Rnn(TextNetworkFamily):
    """The family."""

    network = Network
