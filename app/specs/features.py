"""The feature recipe: which columns a model sees, and what is made of them inside its graph."""

from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from app.core.errors import InvalidSpec
from app.specs.base import NO_NUL, VISIBLE, Spec

FeatureType = Literal["number", "category", "boolean", "text"]
Reads = Literal["numbers", "categories", "both"]
RECIPE_VERSION = 1
Loc = tuple[str | int, ...]
_KINDS: Mapping[str, Reads] = {
    "integer": "numbers", "number": "numbers", "boolean": "numbers", "category": "categories"
}  # fmt: skip
Fraction = Annotated[float, Field(ge=0, le=1)]
Names = Annotated[list[str], Field(min_length=1, max_length=1000)]


class FeatureStep(Spec):
    """One step of the recipe, fitted on training rows; `reads` says which columns suit it."""

    reads: ClassVar[Reads] = "numbers"
    makes_columns: ClassVar[bool] = False  # or columns of another type, which later steps may name
    step: str
    columns: Annotated[Names | None, Field(description="null: every column that the step suits")] = None

    def named(self) -> Iterable[tuple[Loc, str]]:
        """(where in the step, name) of each column that it names."""
        return ((("columns", j), name) for j, name in enumerate(self.columns or []))

    def reads_at(self, _loc: Loc) -> Reads:
        """Which columns suit this field of the step."""
        return self.reads


class Clip(FeatureStep):
    """Clip numbers: into [low, high], between two quantiles of training rows, or by their interquartile range."""

    step: Literal["clip"]
    low: float | None = None
    high: float | None = None
    quantiles: Annotated[tuple[Fraction, Fraction] | None, Field(description="such as [0.01, 0.99]")] = None
    iqr: Annotated[
        float | None, Field(gt=0, le=100, description="interquartile ranges beyond the quartiles; 1.5 is usual")
    ] = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        fixed = self.low is not None or self.high is not None
        if fixed + (self.quantiles is not None) + (self.iqr is not None) != 1:
            raise ValueError("give bounds (low, high or both), or quantiles, or iqr")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError("low is above high; swap them")
        if self.quantiles is not None and self.quantiles[0] >= self.quantiles[1]:
            raise ValueError("the first of quantiles must be below the second")
        return self


class Impute(FeatureStep):
    """Fill missing values, of numbers or of categories; the default columns are those with gaps in training rows."""

    reads: ClassVar[Reads] = "both"
    makes_columns: ClassVar[bool] = True
    step: Literal["impute"]
    strategy: Annotated[
        Literal["median", "mean", "most_frequent", "constant"],
        Field(description="median and mean are of numbers; categories take most_frequent or constant"),
    ] = "median"
    value: Annotated[
        float | str | None, Field(description="of strategy constant: a number for numbers, text for categories")
    ] = None
    flag: Annotated[bool, Field(description="add a column of 0 and 1, 'NAME missing', for each")] = False

    @model_validator(mode="after")
    def _value_of_constant(self) -> Self:
        if (self.value is not None) != (self.strategy == "constant"):
            raise ValueError("value goes with strategy constant, and only with it")
        return self


class Scale(FeatureStep):
    """Scale numbers, or make their distribution even; missing values stay missing."""

    step: Literal["scale"]
    method: Annotated[
        Literal["standard", "min_max", "robust", "log1p", "yeo_johnson"],
        Field(description="robust: median and interquartile range; log1p: log(1 + x), of numbers above -1"),
    ] = "standard"


class Bin(FeatureStep):
    """Replace numbers by the bin that they fall into, counted from 0; missing values stay missing."""

    makes_columns: ClassVar[bool] = True
    step: Literal["bin"]
    bins: Annotated[int, Field(ge=2, le=256)] = 10
    strategy: Literal["quantile", "uniform"] = "quantile"
    output: Annotated[Literal["number", "category"], Field(description="the bin as a number or a category")] = "number"


class OneHot(FeatureStep):
    """Replace categories by a column of 0 and 1 for each; missing values and unseen categories are all zeros."""

    reads: ClassVar[Reads] = "categories"
    makes_columns: ClassVar[bool] = True
    step: Literal["one_hot"]
    max_categories: Annotated[
        int, Field(ge=1, le=1000, description="a column's most frequent ones; rarer ones are all zeros")
    ] = 20


class Ordinal(FeatureStep):
    """Replace categories by their place in a given order, from 0; others are missing."""

    reads: ClassVar[Reads] = "categories"
    step: Literal["ordinal"]
    columns: None = None
    orders: Annotated[
        dict[str, Annotated[list[str], Field(min_length=2, max_length=1000)]],
        Field(min_length=1, max_length=1000, examples=[{"size": ["S", "M", "L"]}]),
    ]

    def named(self) -> Iterable[tuple[Loc, str]]:
        """The columns that have an order."""
        return ((("orders", name), name) for name in self.orders)

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for name, order in self.orders.items():
            if len(set(order)) < len(order):
                raise ValueError(f"the order of '{name}' names a category twice")
        return self


class TargetEncode(FeatureStep):
    """Replace categories by the mean of the target (of each class, of three or more), drawn towards the mean of all.

    Training rows get the means of other rows (cross-fitting), so that no row sees its own target.
    """

    reads: ClassVar[Reads] = "categories"
    makes_columns: ClassVar[bool] = True
    step: Literal["target_encode"]
    smooth: Annotated[
        Annotated[float, Field(ge=0, le=1e6)] | Literal["auto"],
        Field(description="rows' worth of the overall mean; auto: by the variance within categories"),
    ] = "auto"
    folds: Annotated[int, Field(ge=2, le=20)] = 5


class Hash(FeatureStep):
    """Replace categories by one of a fixed number of buckets (MurmurHash3), which unseen ones have as well."""

    reads: ClassVar[Reads] = "categories"
    step: Literal["hash"]
    buckets: Annotated[int, Field(ge=2, le=1_000_000)] = 256


class DateParts(FeatureStep):
    """Add parts of dates that are read as numbers, days since 1970-01-01 UTC, as columns 'NAME.year' and so on."""

    makes_columns: ClassVar[bool] = True
    step: Literal["date_parts"]
    columns: Names
    parts: Annotated[
        list[Literal["year", "quarter", "month", "day", "weekday", "day_of_year", "hour"]],
        Field(min_length=1, max_length=7, description="weekday: Monday is 0; hour: 0-23, UTC"),
    ] = ["year", "month", "day", "weekday"]
    keep: Annotated[bool, Field(description="keep the days since 1970 as well")] = True


class Interact(FeatureStep):
    """Add the products of pairs of numbers: of the named pairs, or of all pairs of the columns."""

    makes_columns: ClassVar[bool] = True
    step: Literal["interact"]
    pairs: Annotated[list[tuple[str, str]] | None, Field(min_length=1, max_length=1000)] = None

    def named(self) -> Iterable[tuple[Loc, str]]:
        """Those of `columns` and of `pairs`."""
        yield from super().named()
        yield from ((("pairs", j, k), name) for j, pair in enumerate(self.pairs or []) for k, name in enumerate(pair))

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.pairs is not None and self.columns is not None:
            raise ValueError("give columns or pairs")
        return self


class Polynomial(FeatureStep):
    """Add all powers and products of numbers up to a degree."""

    makes_columns: ClassVar[bool] = True
    step: Literal["polynomial"]
    degree: Annotated[int, Field(ge=2, le=4)] = 2


class Pca(FeatureStep):
    """Replace numbers by principal components; a missing value counts as the mean."""

    makes_columns: ClassVar[bool] = True
    step: Literal["pca"]
    components: Annotated[int | None, Field(ge=1, le=1000)] = None
    variance: Annotated[
        float | None, Field(gt=0, lt=1, description="as many components as hold this share of the variance")
    ] = None
    scale: Annotated[bool, Field(description="to one standard deviation first")] = True

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.components is None) == (self.variance is None):
            raise ValueError("give components or variance")
        return self


class Svd(FeatureStep):
    """Replace numbers by their largest singular directions, without centring them; a missing value counts as 0."""

    makes_columns: ClassVar[bool] = True
    step: Literal["svd"]
    components: Annotated[int, Field(ge=1, le=1000)]


class Select(FeatureStep):
    """Keep the numbers that tell most of the target, or those that vary; other numbers of `columns` are dropped."""

    step: Literal["select"]
    by: Literal["mutual_information", "f", "variance"] = "mutual_information"
    k: Annotated[int | None, Field(ge=1, le=10_000, description="so many; of mutual_information and f")] = None
    threshold: Annotated[float | None, Field(ge=0, le=1e30, description="drop up to this variance")] = None

    @model_validator(mode="after")
    def _as_the_score_takes(self) -> Self:
        varies = self.by == "variance"
        if (self.k is None) != varies or (self.threshold is None) == varies:
            raise ValueError("give threshold with by variance, k with the others")
        return self


class Aggregate(FeatureStep):
    """Add statistics of a number over the training rows of the same category; unseen ones get those of all rows."""

    reads: ClassVar[Reads] = "both"
    makes_columns: ClassVar[bool] = True
    step: Literal["aggregate"]
    columns: None = None
    by: Annotated[str, Field(description="a column of categories; its missing values are a category of their own")]
    column: Annotated[str, Field(description="a column of numbers")]
    functions: Annotated[
        list[Literal["mean", "std", "min", "max", "count", "median"]],
        Field(min_length=1, max_length=6, description="of the values that are there; count: how many"),
    ] = ["mean"]

    def named(self) -> Iterable[tuple[Loc, str]]:
        """Both."""
        return ((("by",), self.by), (("column",), self.column))

    def reads_at(self, loc: Loc) -> Reads:
        """Categories to group by, numbers to compute from."""
        return "categories" if loc == ("by",) else "numbers"

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len(set(self.functions)) < len(self.functions):
            raise ValueError("functions names one twice")
        return self


class Derive(FeatureStep):
    """Add a column by an SQL expression over the columns of a row (DuckDB's dialect), of numbers or true and false."""

    makes_columns: ClassVar[bool] = True
    step: Literal["derive"]
    columns: None = None
    name: Annotated[str, Field(min_length=1, max_length=200, pattern=VISIBLE, description="of the new column")]
    expression: Annotated[
        str,
        Field(
            min_length=1, max_length=2000, pattern=NO_NUL, examples=["CASE WHEN city = 'Oslo' THEN income / rooms END"],
            description="numbers, + - * / **, comparisons, AND, OR, NOT, IN, BETWEEN, IS NULL, CASE, and abs, ceil, "
            "coalesce, exp, floor, greatest, least, ln, nullif, power, round, sqrt; = and IN of categories",
        ),
    ]  # fmt: skip


AnyStep = Annotated[
    Clip | Impute | Scale | Bin | OneHot | Ordinal | TargetEncode | Hash | DateParts | Interact | Polynomial
    | Pca | Svd | Select | Aggregate | Derive,
    Field(discriminator="step"),
]  # fmt: skip


class FeatureSpec(Spec):
    """Which columns the model sees and as what."""

    drop: Annotated[list[str], Field(description="columns to leave out")] = []
    types: Annotated[dict[str, FeatureType], Field(description="read these columns as this type")] = {}
    steps: Annotated[
        list[AnyStep],
        Field(description="transformations in this order, fitted on training rows, part of the model", max_length=100),
    ] = []

    def named_by_steps(self) -> list[tuple[Loc, str]]:
        """(where, name) of columns that steps name, up to the first that makes columns of its own.

        What later ones name may be made by it; the job knows when it has fitted it.
        """
        named: list[tuple[Loc, str]] = []
        for i, step in enumerate(self.steps):
            named += [(("features", "steps", i, *loc), name) for loc, name in step.named()]
            if step.makes_columns:
                break
        return named

    def check_steps(self, types: Mapping[str, str], target: str) -> None:
        """InvalidSpec names a column that its step does not suit, by the column types of the profile."""
        read = {**types, **self.types}
        retyped: set[str] = set()  # by an earlier step
        for loc, name in self.named_by_steps():
            step = self.steps[int(loc[2])]
            if name in {target, *self.drop}:
                msg = f"'{name}' is the target" if name == target else f"'{name}' is dropped"
                raise InvalidSpec.at(*loc, msg=f"{msg} and no feature; name another column")
            kind = _KINDS.get(read.get(name, ""))
            reads = step.reads_at(loc[3:])
            if name not in retyped and reads not in {"both", kind}:
                raise InvalidSpec.at(*loc, msg=unsuited(name, step.step, reads))
            retyped.add(name)


def unsuited(name: str, step: str, reads: Reads) -> str:
    """Why a step cannot read a column, and what to do."""
    if reads == "both":
        return f"there is no used column '{name}'; {step} takes those only"
    one = reads.removesuffix("ies").removesuffix("s") + ("y" if reads == "categories" else "")
    return (
        f"'{name}' is not a used column of {reads}; {step} takes those only; set features.types to '{one}' "
        "if it can be read so"
    )
