"""What a compressed variant may cost, and what it has to reach."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from app.specs.base import Spec

Objective = Literal["speed", "latency", "bytes"]
_SEARCH_S = 600.0


class CompressBudget(Spec):
    """What a compressed variant may lose, and what it has to reach.

    With bounds of losses alone the usual recipe of the graph is tried, which takes seconds.
    A target or a time limit asks for a search over recipes.
    """

    max_metric_drop: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="most loss of the main metric and of accuracy, by validation rows; relative for RMSE and MAE",
        ),
    ] = 0.01
    max_accuracy_drop: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="most loss of accuracy, of classifiers by another metric; null: as max_metric_drop",
        ),
    ] = None
    max_error_increase: Annotated[
        float | None,
        Field(
            ge=0,
            le=10,
            description="most increase of the error, relative: of RMSE and MAE in place of max_metric_drop, of other "
            "metrics beside it, where the error is what lacks to 1; null: max_metric_drop alone",
        ),
    ] = None
    max_bytes: Annotated[int | None, Field(ge=1, description="of the variant's file")] = None
    max_p95_ms: Annotated[float | None, Field(gt=0, le=1e6, description="for one row, on this host")] = None
    min_speedup: Annotated[
        float | None,
        Field(
            gt=0,
            le=1e4,
            description="times the full model's rows a second in batches; with objective latency, times as quick for "
            "one row",
        ),
    ] = None
    objective: Annotated[
        Objective, Field(description="what the winner among the variants within the budget is best in")
    ] = "speed"
    time_limit_s: Annotated[
        float | None,
        Field(
            gt=0,
            le=604_800,
            description="seconds to search for recipes; the candidate at hand is finished. null: no search, or 600 s "
            "if max_bytes, max_p95_ms or min_speedup is given",
        ),
    ] = None
    seed: Annotated[int, Field(ge=0, lt=2**31, description="of the rows to calibrate with, and of the search")] = 0

    @field_validator(
        "max_metric_drop", "max_accuracy_drop", "max_error_increase", "max_bytes", "max_p95_ms", "min_speedup",
        "time_limit_s", "seed", mode="before",
    )  # fmt: skip
    @classmethod
    def _is_a_number(cls, value: Any) -> Any:  # noqa: ANN401 - whatever was sent
        """True is 1 to Python and to pydantic, and not what anybody means by a number."""
        if isinstance(value, bool):
            raise PydanticCustomError("number_type", "must be a number, not true or false")
        return value

    @property
    def has_target(self) -> bool:
        """Something has to be reached, beside losing little."""
        return any(target is not None for target in (self.max_bytes, self.max_p95_ms, self.min_speedup))

    @property
    def search_s(self) -> float | None:
        """Seconds to search; None for the usual recipe alone."""
        if self.time_limit_s is None and self.has_target:
            return _SEARCH_S
        return self.time_limit_s
