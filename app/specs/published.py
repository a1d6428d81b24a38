"""Published weights that a network begins with, and how little of them a training may change."""

from typing import Annotated

from pydantic import Field, ValidationInfo

from app.specs.base import Spec
from app.specs.families import FamilyParams


class LoraSpec(Spec):
    """Low-rank adaptation (Hu and others 2021): published weights stay, and small matrices beside them learn.

    The matrices are added to the weights before the model is exported, so that an answer takes no longer.
    """

    rank: Annotated[int, Field(ge=1, le=256, description="of the matrices that are learnt")] = 8
    alpha: Annotated[float, Field(gt=0, le=1024, description="what they weigh: alpha / rank")] = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1, description="of what they read")] = 0.0
    target_modules: Annotated[
        list[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$", max_length=100)]] | None,
        Field(
            min_length=1,
            max_length=50,
            description="linear layers, by the ends of their names; null: the queries and values of attention",
        ),
    ] = None


def with_weights(lora: LoraSpec | None, info: ValidationInfo) -> LoraSpec | None:
    """As it is. ValueError if `weights`, an earlier field, names none."""
    if lora is not None and info.data.get("weights") is None:
        raise ValueError("lora adapts published weights; name them in weights, or leave it out")
    return lora


def without_own(params: FamilyParams, *names: str) -> None:
    """ValueError for a field that published weights decide and that is not as by default."""
    if getattr(params, "weights", None) is None:
        return
    for name in names:
        if getattr(params, name) != type(params).model_fields[name].default:
            raise ValueError(f"weights bring their own {name}; leave it out")
