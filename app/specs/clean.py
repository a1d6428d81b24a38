"""Cleaning steps: which rows a training leaves out."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from app.core.errors import InvalidSpec
from app.specs.base import NO_NUL, Spec

_NUMBERS = frozenset({"integer", "number"})
Names = Annotated[list[str], Field(min_length=1)]


class DropDuplicates(Spec):
    """Drop rows that repeat an earlier row in every used column; counted in the model card."""

    step: Literal["drop_duplicates"]


class DropMissing(Spec):
    """Drop rows in which any of `columns` is missing; counted in the model card."""

    step: Literal["drop_missing"]
    columns: Names


class DropOutliers(Spec):
    """Drop training rows with an outlier in any of `columns`; validation and test rows are kept, to stay honest.

    Bounds are those of training rows. A missing value is no outlier. It comes after all other steps, and the split.
    """

    step: Literal["drop_outliers"]
    columns: Annotated[Names | None, Field(description="null: all used columns of numbers")] = None
    method: Annotated[
        Literal["iqr", "z_score"],
        Field(description="iqr: beyond the quartiles by `factor` interquartile ranges; z_score: standard deviations"),
    ] = "iqr"
    factor: Annotated[float, Field(gt=0, le=1000)] = 3.0


class FilterRows(Spec):
    """Keep the rows for which an SQL predicate over the columns is true (DuckDB's dialect); counted in the card."""

    step: Literal["filter"]
    where: Annotated[
        str,
        Field(
            min_length=1, max_length=10_000, pattern=NO_NUL, examples=["age >= 18 AND city IN ('Oslo', 'Rome')"],
            description="comparisons, AND, OR, NOT, IN, BETWEEN, LIKE, CASE, CAST and functions of one row",
        ),
    ]  # fmt: skip


CleanStep = Annotated[DropDuplicates | DropMissing | DropOutliers | FilterRows, Field(discriminator="step")]


def named_by_clean(steps: list[CleanStep]) -> list[tuple[tuple[str | int, ...], str]]:
    """(where, name) of each column that a step names."""
    return [
        (("clean", i, "columns", j), name)
        for i, step in enumerate(steps)
        if isinstance(step, DropMissing | DropOutliers)
        for j, name in enumerate(step.columns or [])
    ]


def check_clean(steps: list[CleanStep], types: Mapping[str, str]) -> None:
    """InvalidSpec names a column without outliers, by the column types of the profile."""
    for loc, name in named_by_clean(steps):
        if isinstance(steps[int(loc[1])], DropOutliers) and types.get(name) not in _NUMBERS:
            raise InvalidSpec.at(*loc, msg=f"'{name}' is {types.get(name)}; outliers are of numbers; leave it out")
