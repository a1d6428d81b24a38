"""Nodes that networks over texts share."""

import numpy as np
from onnx import TensorProto
from torch import nn

from workers.export.graph import Graph
from workers.families.network import numbers
from workers.families.vocabulary import PADDING


def embedded_nodes(graph: Graph, table: nn.Embedding, tokens: str) -> str:
    """From tokens [N, L] to their rows of the table, FP32 [N, L, width]."""
    return graph.add("Gather", graph.constant(numbers(table.weight), np.float32), tokens, axis=0)


def mask_nodes(graph: Graph, tokens: str) -> str:
    """1 where there is a token and 0 in the padding: FP32 [N, L]."""
    return graph.add("Cast", graph.add("Greater", tokens, graph.constant(PADDING, np.int64)), to=TensorProto.FLOAT)


def linear_nodes(graph: Graph, layer: nn.Linear, value: str) -> str:
    """A linear layer over FP32 [N, F]."""
    weight = graph.constant(numbers(layer.weight).T, np.float32)
    return graph.add("Gemm", value, weight, graph.constant(numbers(layer.bias), np.float32))
