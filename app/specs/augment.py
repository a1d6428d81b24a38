"""How training pictures and texts are varied, so that a network learns what does not matter."""

from typing import Annotated

from pydantic import Field

from app.specs.base import Spec

Share = Annotated[float, Field(ge=0, le=0.9)]


class RandAugmentSpec(Spec):
    """Some changes out of fourteen, drawn for each picture: shears, shifts, turns, colours, sharpness and others."""

    operations: Annotated[int, Field(ge=1, le=8, description="changes that a picture goes through")] = 2
    magnitude: Annotated[int, Field(ge=0, le=30, description="how strong all of them are")] = 9


class AugmentSpec(Spec):
    """Random changes to training pictures or texts, drawn anew in every epoch; 0 and false: off.

    Validation and test rows, and what is served, stay as they are. A seed gives the same changes again.
    """

    flip: Annotated[bool, Field(description="mirror half of the pictures left to right")] = False
    flip_vertical: Annotated[bool, Field(description="turn half of the pictures upside down")] = False
    crop: Annotated[
        int, Field(ge=0, le=128, description="shift by up to so many pixels each way; edges are repeated")
    ] = 0
    rotate: Annotated[float, Field(ge=0, le=180, description="turn by up to so many degrees each way")] = 0.0
    scale: Annotated[Share, Field(description="0.2: between 0.8 and 1.2 times as large")] = 0.0
    brightness: Annotated[Share, Field(description="0.2: between 0.8 and 1.2 times as bright")] = 0.0
    contrast: Annotated[Share, Field(description="the same, about the picture's mean")] = 0.0
    saturation: Annotated[Share, Field(description="the same, about the pixel's grey; colour pictures only")] = 0.0
    erase: Annotated[
        float, Field(ge=0, le=0.5, description="area of a square that is replaced by the picture's mean (cutout)")
    ] = 0.0
    mixup: Annotated[
        float, Field(ge=0, le=10, description="blend pictures and labels in pairs, by shares from Beta(mixup, mixup)")
    ] = 0.0
    cutmix: Annotated[
        float, Field(ge=0, le=10, description="the same, by a rectangle of the other picture; with mixup: by turns")
    ] = 0.0
    rand_augment: Annotated[
        RandAugmentSpec | None, Field(description="so many changes out of fourteen for each picture (RandAugment)")
    ] = None
    token_dropout: Annotated[Share, Field(description="texts: chance of a word to be read as an unknown one")] = 0.0
    token_swap: Annotated[Share, Field(description="texts: chance of a word to change places with the next one")] = 0.0

    def unfit(self, data: str) -> list[str]:
        """The changes that are asked for, but are none of `data`: `image`, or `text`."""
        asked = [name for name in type(self).model_fields if getattr(self, name)]
        return [name for name in asked if name.startswith("token_") != (data == "text")]
