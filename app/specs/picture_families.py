"""Families of pictures besides `cnn`: their parameters and descriptors."""

from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from app.specs.families import Family, FamilyParams, Weights, divided_by_heads
from app.specs.published import LoraSpec, with_weights, without_own

Widths = Annotated[
    list[Annotated[int, Field(ge=4, le=2048)]], Field(min_length=1, max_length=6, description="channels per stage")
]
Dropout = Annotated[float, Field(ge=0, lt=1, description="before the classifier")]
ImageSize = Annotated[
    int | None,
    Field(ge=8, le=512, description="pixels a side; null: that of the weights, else from the data, at most 96"),
]


class ResnetParams(FamilyParams):
    """Residual network (torch): stages of basic blocks, each of half the picture and more channels."""

    widths: Widths = [64, 128, 256]
    depth: Annotated[int, Field(ge=1, le=32, description="blocks of two convolutions per stage")] = 1
    dropout: Dropout = 0.0
    image_size: ImageSize = None
    weights: Weights = None

    @model_validator(mode="after")
    def _weights_bring_their_own(self) -> Self:
        without_own(self, "widths", "depth")
        return self


class MobilenetParams(FamilyParams):
    """MobileNet v2 (transformers): inverted residuals of separable convolutions."""

    width: Annotated[float, Field(ge=0.1, le=2, description="share of the published channels")] = 0.5
    dropout: Dropout = 0.2
    image_size: ImageSize = None
    weights: Weights = None

    @model_validator(mode="after")
    def _weights_bring_their_own(self) -> Self:
        without_own(self, "width")
        return self


class ConvnextParams(FamilyParams):
    """ConvNeXt (transformers): stages of 7x7 depthwise convolutions and inverted bottlenecks."""

    widths: Widths = [48, 96, 192]
    depth: Annotated[int, Field(ge=1, le=32, description="blocks per stage")] = 2
    patch: Annotated[int | None, Field(ge=1, le=32, description="pixels a side of a cell; null: from the size")] = None
    drop_path: Annotated[float, Field(ge=0, lt=1, description="chance to skip the last block")] = 0.1
    image_size: ImageSize = None
    weights: Weights = None

    @model_validator(mode="after")
    def _weights_bring_their_own(self) -> Self:
        without_own(self, "widths", "depth", "patch")
        return self


class VitParams(FamilyParams):
    """Vision transformer (transformers); from random weights it needs many pictures or much augmentation."""

    heads: Annotated[int, Field(ge=1, le=64, description="attention heads")] = 4
    width: Annotated[int, Field(ge=8, le=4096, description="features of a token; a multiple of heads")] = 128
    depth: Annotated[int, Field(ge=1, le=48, description="layers")] = 6
    patch: Annotated[
        int | None, Field(ge=1, le=64, description="pixels a side of a token; null: an eighth of the picture")
    ] = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    image_size: ImageSize = None
    weights: Weights = None
    lora: LoraSpec | None = None

    @model_validator(mode="after")
    def _weights_bring_their_own(self) -> Self:
        without_own(self, "width", "depth", "heads", "patch")
        return self

    _heads_share_it = field_validator("width")(divided_by_heads)
    _lora_has_weights = field_validator("lora")(with_weights)


def _family(name: str, params: type[FamilyParams], implementation: str, summary: str) -> Family:
    return Family(
        name, ("classification", "multilabel"), "image", params, f"workers.families.{implementation}", summary,
        loop=True, weighs_classes=True, recomputes=True,
    )  # fmt: skip


RESNET = _family("resnet", ResnetParams, "resnet:Resnet", "residual network (torch)")
MOBILENET = _family("mobilenet", MobilenetParams, "backbones:Mobilenet", "MobileNet v2 (transformers)")
CONVNEXT = _family("convnext", ConvnextParams, "backbones:Convnext", "ConvNeXt (transformers)")
VIT = _family("vit", VitParams, "backbones:Vit", "vision transformer (transformers)")
