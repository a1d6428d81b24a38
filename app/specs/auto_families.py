"""Families that try other families within a time budget: of tables, of texts, of pictures."""

from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from app.specs.families import EVERY_TASK, DataKind, Family, FamilyParams, families


class AutoParams(FamilyParams):
    """The best ensemble of several families within a time budget."""

    learns_from: ClassVar[DataKind] = "tabular"

    time_limit_s: Annotated[
        float, Field(ge=5, le=604_800, description="of training; export and judging come on top")
    ] = 300.0
    folds: Annotated[int, Field(ge=2, le=20, description="each model is trained so often, without another part")] = 5
    members: Annotated[int, Field(ge=1, le=16, description="most models in the ensemble")] = 4
    families: Annotated[
        list[str] | None, Field(min_length=1, max_length=100, description="try these alone; null: all that fit")
    ] = None

    @field_validator("families")
    @classmethod
    def _known(cls, names: list[str] | None) -> list[str] | None:
        usable = [name for name, found in families().items() if found.data == cls.learns_from and not found.tries]
        for name in names or []:
            if name not in usable:
                raise ValueError(f"'{name}' is none of: {', '.join(usable)}")
        return names


class AutoTextParams(AutoParams):
    """The best ensemble of several families over texts within a time budget."""

    learns_from: ClassVar[DataKind] = "text"


class AutoImageParams(AutoParams):
    """The best ensemble of several families over pictures within a time budget."""

    learns_from: ClassVar[DataKind] = "image"
    members: Annotated[int, Field(ge=1, le=16, description="most models in the ensemble")] = 2


AUTO = Family(
    "auto", EVERY_TASK, "tabular", AutoParams, "workers.automl.auto:Auto",
    "the best ensemble in a given time", holds_out=True, tries=True,
)  # fmt: skip
AUTO_TEXT = Family(
    "auto_text", EVERY_TASK, "text", AutoTextParams, "workers.automl.auto:AutoText",
    "the best ensemble of families over texts in a given time", holds_out=True, tries=True,
)  # fmt: skip
AUTO_IMAGE = Family(
    "auto_image", ("classification", "multilabel"), "image", AutoImageParams, "workers.automl.auto:AutoImage",
    "the best ensemble of families over pictures in a given time", holds_out=True, tries=True,
)  # fmt: skip
