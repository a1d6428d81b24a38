"""Families of networks over texts: their parameters and descriptors."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from app.specs.families import EVERY_TASK, Family, FamilyParams, Weights, divided_by_heads
from app.specs.published import LoraSpec, with_weights, without_own

Dropout = Annotated[float, Field(ge=0, lt=1, description="of word embeddings, and before the last layer")]


class TokenParams(FamilyParams):
    """How texts become numbers of words; a character of Chinese, Japanese or Thai is a word."""

    max_tokens: Annotated[int, Field(ge=4, le=1000, description="words read of a row; the rest is not")] = 256
    max_characters: Annotated[int, Field(ge=16, le=1000, description="read of a text; the rest is not")] = 1000
    min_rows: Annotated[int, Field(ge=1, le=100_000, description="training rows that a known word occurs in")] = 2
    max_words: Annotated[int, Field(ge=100, le=200_000, description="most known words, the most frequent")] = 30_000


class TextCnnParams(TokenParams):
    """Convolutions over words, and the strongest answer of each filter (torch). Kim 2014."""

    width: Annotated[int, Field(ge=8, le=1024, description="numbers that stand for a word")] = 128
    windows: Annotated[
        list[Annotated[int, Field(ge=1, le=16)]],
        Field(min_length=1, max_length=8, description="words that a filter sees at once, by kind of filter"),
    ] = [1, 2, 3, 4]
    filters: Annotated[int, Field(ge=4, le=2048, description="of each kind")] = 128
    dropout: Dropout = 0.5


class RnnParams(TokenParams):
    """Recurrent network that reads words in both directions (torch)."""

    cell: Literal["lstm", "gru"] = "lstm"
    width: Annotated[int, Field(ge=8, le=1024, description="numbers that stand for a word")] = 128
    units: Annotated[int, Field(ge=4, le=2048, description="numbers that a direction remembers")] = 128
    depth: Annotated[int, Field(ge=1, le=8, description="layers")] = 1
    bidirectional: Annotated[bool, Field(description="false: from the first word to the last alone")] = True
    dropout: Dropout = 0.5


class TransformerParams(TokenParams):
    """Transformer encoder of BERT's kind (transformers), trained from random weights, or from published ones."""

    max_tokens: Annotated[int, Field(ge=4, le=1000, description="words read of a row; the rest is not")] = 128
    heads: Annotated[int, Field(ge=1, le=64, description="of attention")] = 4
    width: Annotated[int, Field(ge=8, le=4096, description="numbers that stand for a word; a multiple of heads")] = 128
    depth: Annotated[int, Field(ge=1, le=48, description="layers")] = 2
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    weights: Weights = None
    lora: LoraSpec | None = None

    @model_validator(mode="after")
    def _weights_bring_their_own(self) -> Self:
        without_own(self, "width", "depth", "heads", "min_rows", "max_words")
        return self

    _heads_share_it = field_validator("width")(divided_by_heads)
    _lora_has_weights = field_validator("lora")(with_weights)


def _family(name: str, params: type[FamilyParams], implementation: str, summary: str) -> Family:
    return Family(
        name, EVERY_TASK, "text", params, f"workers.families.{implementation}", summary, loop=True, weighs_classes=True,
        recomputes=name == "transformer",
    )  # fmt: skip


TEXT_CNN = _family("text_cnn", TextCnnParams, "text_cnn:TextCnn", "convolutions over words (torch)")
RNN = _family("rnn", RnnParams, "rnn:Rnn", "LSTM or GRU over words (torch)")
TRANSFORMER = _family(
    "transformer", TransformerParams, "transformer:Transformer", "transformer encoder of BERT's kind (transformers)"
)
