"""Transformer encoders over words, made from transformers' configuration of BERT (Devlin and others 2019)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import onnx
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertModel, BertTokenizer
from transformers.models.bert.modeling_bert import BertLayer

from app.core.errors import InvalidSpec
from app.core.signature import Signature
from app.core.signature import Tensor as GraphTensor
from workers.context import JobContext
from workers.export.graph import Graph
from workers.export.torch_graph import export_module
from workers.export.torch_weights import attention_layers, keep_layers, restore
from workers.families.lora import adapted, merged
from workers.families.sequences import FittedText, TextNetworkFamily, TokenNetwork, outputs_of
from workers.families.vocabulary import PADDING, TokenReader
from workers.families.weight_folders import find_weights
from workers.families.weights import load_pretrained, told_of
from workers.families.wordpiece import WordPiece
from workers.learning import Array, LearningData
from workers.training.cheaper import cheapen_as

_FEED_FORWARD = 4  # times as wide as the tokens
_TYPE = "bert"
_ROOM = "encoder.network."  # of the network's weights, within its graph
_LAYERS, _TABLE = "encoder.encoder.layer", "encoder.embeddings.word_embeddings"
_EXACT: dict[str, Any] = {
    "attn_implementation": "eager"
}  # the fused one is exported with nodes for rows without tokens


class Network(TokenNetwork):
    """An encoder, the mean of its tokens, and a linear layer.

    `shift` is what tokens are more than the encoder's numbers, of which padding has none where there is a shift.
    """

    def __init__(self, encoder: BertModel, outputs: int, dropout: float, shift: int = 0) -> None:
        super().__init__()
        self.encoder: nn.Module = encoder
        self.config, self.shift = encoder.config, shift
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(encoder.config.hidden_size, outputs)

    def score(self, tokens: Tensor) -> Tensor:
        """Logits or a value."""
        mask = (tokens != PADDING).to(torch.float32)
        numbers = (tokens - self.shift).clamp(min=0)
        said = self.encoder(input_ids=numbers, attention_mask=mask).last_hidden_state  # [N, L, width]
        mean = (said * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        answer: Tensor = self.last(self.dropout(mean))
        return answer

    def shorten(self, keep: int, rank: int | None) -> None:
        """Keep so many layers, evenly spaced from the first; let the table of words be a product of two.

        Args:
            keep: the number of layers.
            rank: numbers that stand for a word in the table, which a matrix makes as many as they were; the table's
                singular value decomposition gives both. None: the table stays.
        """
        keep_layers(self, _LAYERS, keep)
        self.config.num_hidden_layers = keep
        if rank is not None:
            embeddings = cast("BertModel", self.encoder).embeddings
            embeddings.register_module("word_embeddings", _factored(embeddings.word_embeddings, rank))

    def recomputable(self) -> list[nn.Module]:
        """The encoder's layers."""
        return [module for module in self.encoder.modules() if isinstance(module, BertLayer)]

    def to_nodes(self, graph: Graph, tokens: str) -> str:
        """By torch's exporter."""
        inside = Signature(
            "inference", (GraphTensor(tokens, "INT64", (-1, -1)),), (GraphTensor("score", "FP32", (-1, -1)),), ()
        )
        example = torch.ones((2, 7), dtype=torch.int64)
        model = export_module(_Score(self), example, inside, (1, self.config.max_position_embeddings))
        return graph.include(model, "encoder")


class _Score(nn.Module):
    """`score` as a module's call."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor) -> Tensor:
        return self.network.score(tokens)


def _factored(table: nn.Embedding, rank: int) -> nn.Module:
    """The nearest table of this rank, as a narrower table and a matrix."""
    left, strengths, right = torch.linalg.svd(table.weight.detach(), full_matrices=False)
    root = strengths[:rank].sqrt()
    narrow = nn.Embedding(table.num_embeddings, rank, table.padding_idx, _weight=left[:, :rank] * root)
    wide = nn.Linear(rank, table.embedding_dim, bias=False)
    wide.weight = nn.Parameter((right[:rank] * root[:, None]).T.contiguous())
    return nn.Sequential(narrow, wide)


def random_encoder(tokens: int, params: Mapping[str, Any]) -> BertModel:
    """Of so many tokens, with random weights."""
    width, dropout = params["width"], params["dropout"]
    config = BertConfig(
        vocab_size=tokens, hidden_size=width, num_hidden_layers=params["depth"],
        num_attention_heads=params["heads"], intermediate_size=_FEED_FORWARD * width,
        max_position_embeddings=params["max_tokens"], type_vocab_size=1, pad_token_id=PADDING,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **_EXACT,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False)


def load_tokenizer(folder: Path) -> Tokenizer:
    """BERT's tokenizer of a folder. InvalidSpec: it has none."""
    msg = "it has no tokenizer.json or vocab.txt that can be read; add the tokenizer by its save_pretrained"
    if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.txt").is_file():
        raise InvalidSpec.at("params", "weights", msg=msg)  # transformers would make one without words
    try:
        tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # noqa: BLE001 - the reader raises bare exceptions
        raise InvalidSpec.at("params", "weights", msg=f"{msg}: {str(error)[:200]}") from None
    made: Tokenizer = tokenizer.backend_tokenizer
    return made


class Transformer(TextNetworkFamily):
    """The family."""

    def reader(self, texts: Array, job: JobContext) -> TokenReader:
        """Words of the training texts, or the pieces of the tokenizer that published weights were trained with."""
        if self.params["weights"] is None:
            return super().reader(texts, job)
        folder = find_weights(job, self.params["weights"], _TYPE)
        return WordPiece.of(load_tokenizer(folder), self.params["max_tokens"], self.params["max_characters"])

    def make(self, reader: TokenReader, outputs: int, job: JobContext) -> TokenNetwork:
        """A network with random weights, or on published ones."""
        if self.params["weights"] is None:
            return Network(random_encoder(reader.size, self.params), outputs, self.params["dropout"])
        folder = find_weights(job, self.params["weights"], _TYPE)
        self.about = {"fine_tuned": told_of(folder, self.params["weights"])}
        encoder = load_pretrained(BertModel, folder, add_pooling_layer=False, **_EXACT)
        if encoder.config.vocab_size < reader.size - 1:
            msg = f"its tokenizer has {reader.size - 1} pieces, and its network {encoder.config.vocab_size}"
            raise InvalidSpec.at("params", "weights", msg=msg)
        if (most := encoder.config.max_position_embeddings) < self.params["max_tokens"]:
            raise InvalidSpec.at("params", "max_tokens", msg=f"these weights read {most} tokens at most")
        network = Network(encoder, outputs, self.params["dropout"], shift=1)
        if self.params["lora"] is not None:
            network.encoder, self.about["lora"] = adapted(encoder, self.params["lora"])
        return network

    def rebuild(self, model: onnx.ModelProto, data: LearningData, job: JobContext) -> FittedText:
        """The network that `model` was exported from, or one that was shortened since.

        Raises:
            Unreadable: its weights are not in the graph.
            InvalidSpec: the published weights that it began with are no longer there.
        """
        reader = self.reader(data.train.inputs["text"], job)
        network = cast("Network", self.make(reader, outputs_of(data), job))
        self.settle(network)
        narrow = next((t.dims[1] for t in model.graph.initializer if t.name == f"{_ROOM}{_TABLE}.0.weight"), None)
        network.shorten(self.depth_of(model), narrow)
        cheapen_as(network, model, _ROOM)
        restore(network, model, _ROOM, frozen=self.params["lora"] is not None)
        return FittedText(data, reader, network, {})

    @staticmethod
    def depth_of(model: onnx.ModelProto) -> int:
        """Layers of the network of this graph."""
        return attention_layers(model)

    @staticmethod
    def shorten(network: nn.Module, keep: int, rank: int | None) -> None:
        """As the network's own."""
        cast("Network", network).shorten(keep, rank)

    def settle(self, network: TokenNetwork) -> None:
        """Add what LoRA has learnt to the published weights."""
        if isinstance(network, Network):
            network.encoder = merged(network.encoder)
