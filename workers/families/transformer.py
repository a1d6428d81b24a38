"""Transformer encoders over words, made from transformers' configuration of BERT (Devlin and others 2019)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from app.core.signature import Signature
from app.core.signature import Tensor as GraphTensor
from workers.export.graph import Graph
from workers.export.torch_graph import export_module
from workers.families.sequences import TextNetworkFamily, TokenNetwork
from workers.families.vocabulary import PADDING

_FEED_FORWARD = 4  # times as wide as the tokens


class Network(TokenNetwork):
    """An encoder, the mean of its tokens, and a linear layer."""

    def __init__(self, tokens: int, outputs: int, params: Mapping[str, Any]) -> None:
        super().__init__()
        width, dropout = params["width"], params["dropout"]
        exact: dict[str, Any] = {"attn_implementation": "eager"}  # fused, rows that are masked whole get nodes
        config = BertConfig(
            vocab_size=tokens, hidden_size=width, num_hidden_layers=params["depth"],
            num_attention_heads=params["heads"], intermediate_size=_FEED_FORWARD * width,
            max_position_embeddings=params["max_tokens"], type_vocab_size=1, pad_token_id=PADDING,
            hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **exact,
        )  # fmt: skip
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(width, outputs)

    def score(self, tokens: Tensor) -> Tensor:
        """Logits or a value."""
        mask = (tokens != PADDING).to(torch.float32)
        said = self.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state  # [N, L, width]
        mean = (said * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        answer: Tensor = self.last(self.dropout(mean))
        return answer

    def to_nodes(self, graph: Graph, tokens: str) -> str:
        """By torch's exporter."""
        inside = Signature(
            "inference", (GraphTensor(tokens, "INT64", (-1, -1)),), (GraphTensor("score", "FP32", (-1, -1)),), ()
        )
        example = torch.ones((2, 7), dtype=torch.int64)
        model = export_module(_Score(self), example, inside, (1, self.encoder.config.max_position_embeddings))
        return graph.include(model, "encoder")


class _Score(nn.Module):
    """`score` as a module's call."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor) -> Tensor:
        return self.network.score(tokens)


class Transformer(TextNetworkFamily):
    """The family."""

    network = Network
