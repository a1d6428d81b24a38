"""How the rows of a training are divided."""

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from app.specs.base import Spec

SplitMethod = Literal["auto", "random", "stratified", "group", "time", "column"]
_COLUMNS = ("group", "time", "column")


class SplitSpec(Spec):
    """How rows are divided; the row ids are saved with the version."""

    method: Annotated[
        SplitMethod, Field(description="auto: by the column that is named, else stratified for classes, else random")
    ] = "auto"
    group: Annotated[
        str | None, Field(min_length=1, validate_default=True, description="rows of one value stay together")
    ] = None
    time: Annotated[
        str | None,
        Field(
            min_length=1, validate_default=True, description="dates or numbers; train on the oldest, test the newest"
        ),
    ] = None
    column: Annotated[
        str | None, Field(min_length=1, validate_default=True, description="names each row's part: train, test …")
    ] = None
    test: Annotated[float, Field(gt=0, lt=0.9, description="share of rows never seen by training")] = 0.2
    validation: Annotated[float, Field(gt=0, lt=0.9, description="share for early stopping and variants")] = 0.1
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 42

    @field_validator(*_COLUMNS)
    @classmethod
    def _suits_the_method(cls, name: str | None, info: ValidationInfo) -> str | None:
        field, method = str(info.field_name), info.data.get("method", "auto")
        if name is None:
            if method == field:
                raise ValueError(f"is required: the column that the method '{field}' divides by")
            return None
        if method not in {"auto", field}:
            raise ValueError(f"does not go with the method '{method}'; leave it out, or set the method to '{field}'")
        if other := next((key for key in _COLUMNS if key != field and info.data.get(key)), None):
            raise ValueError(f"rows are divided by one column; leave out this one or '{other}'")
        return name

    @model_validator(mode="after")
    def _leaves_rows(self) -> Self:
        if self.test + self.validation >= 1:
            raise ValueError("test + validation must be below 1, so that rows are left to train on")
        return self

    @property
    def by(self) -> tuple[Literal["group", "time", "column"], str] | None:
        """The method that reads a column, and that column; None where rows are divided without one."""
        if self.group is not None:
            return "group", self.group
        if self.time is not None:
            return "time", self.time
        return None if self.column is None else ("column", self.column)

    @property
    def left_out(self) -> set[str]:
        """Columns that say who a row is of or which part it is in, and that no model should learn from."""
        return {name for name in (self.group, self.column) if name is not None}
