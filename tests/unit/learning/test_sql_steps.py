"""Steps of the recipe that SQL describes: derived columns and group-by aggregates, against DuckDB itself."""

import re
from dataclasses import replace
from functools import reduce
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
from pydantic import TypeAdapter, ValidationError

from app.core.errors import AimassError, InvalidSpec
from app.core.signature import Column, Signature, Tensor
from app.specs.features import AnyStep, FeatureSpec
from workers.features.recipe import Recipe, fit_recipe
from workers.learning import LearningData, Part

STEP: TypeAdapter[Any] = TypeAdapter(AnyStep)
RNG = np.random.default_rng(11)
N = 2000
NUMBERS = np.stack(
    [RNG.normal(0, 3, N).round(1), RNG.integers(-3, 4, N), RNG.choice([0.0, 1e30, -0.5, 2.5, 88.0], N)], axis=1
).astype(np.float32)  # fmt: skip
NUMBERS[RNG.random((N, 3)) < 0.2] = np.nan
TRUTH = RNG.choice([0.0, 1.0, np.nan], (N, 1)).astype(np.float32)
CATEGORIES = np.stack([RNG.choice(["Oslo", "Rome", "It's", ""], N), RNG.choice(["S", "M"], N)], axis=1).astype(object)
COLUMNS = (
    Column("a", "number", "numeric", 0), Column("b", "integer", "numeric", 1), Column("c x", "number", "numeric", 2),
    Column("smoker", "boolean", "numeric", 3), Column("city", "category", "categorical", 0),
    Column("size", "category", "categorical", 1),
)  # fmt: skip


def inputs(rows: slice) -> dict[str, Any]:
    return {"numeric": np.concatenate([NUMBERS, TRUTH], axis=1)[rows], "categorical": CATEGORIES[rows]}


def learning_data() -> LearningData:
    tensors = (Tensor("numeric", "FP32", (-1, 4)), Tensor("categorical", "BYTES", (-1, 2)))
    signature = Signature("classification", tensors, (Tensor("probabilities", "FP32", (-1, 2)),), COLUMNS, ("n", "y"))
    y = RNG.integers(0, 2, N)
    half = N // 2
    return LearningData(signature, Part(inputs(slice(half)), y[:half]), Part(inputs(slice(half, N)), y[half:]))


@pytest.fixture
def data() -> LearningData:
    return learning_data()


def fitted(data: LearningData, *steps: dict[str, Any]) -> tuple[Recipe, dict[str, Any]]:
    """The recipe, and all rows by column as its one graph makes them."""
    recipe, _ = fit_recipe([STEP.validate_python(step) for step in steps], data)
    made = recipe.transform(inputs(slice(N)), 1)
    return recipe, {c.name: made[c.tensor][:, c.index] for c in recipe.signature.columns}


def by_duckdb(query: str) -> np.ndarray:
    """What DuckDB says of all rows, numbers as doubles; functions give NULL for what they cannot compute."""
    frame = pl.DataFrame({"row": np.arange(N), **{c.name: NUMBERS[:, c.index] for c in COLUMNS[:3]}}).with_columns(
        pl.Series("smoker", TRUTH[:, 0]), *(pl.Series(c.name, CATEGORIES[:, c.index], pl.String) for c in COLUMNS[4:])
    )
    frame = frame.with_columns(pl.col("a", "b", "c x").cast(pl.Float64).fill_nan(None)).with_columns(
        pl.col("smoker").fill_nan(None).cast(pl.Boolean), pl.col("city").replace("", None)
    )
    with duckdb.connect(":memory:") as session:
        session.register("rows", frame.to_arrow(compat_level=pl.CompatLevel.oldest()))
        session.execute("SET ieee_floating_point_ops = false; SET error_on_division_by_zero = false")
        for name in ("ln", "sqrt", "exp"):
            session.execute(f"CREATE MACRO safe_{name}(x) AS (CASE WHEN isfinite(TRY({name}(x))) THEN {name}(x) END)")
        rows = session.execute(f"SELECT CAST(({query}) AS DOUBLE) FROM rows ORDER BY row").fetchall()  # noqa: S608
    return np.asarray([np.nan if value is None else value for (value,) in rows])


EXPRESSIONS = [
    "a + 1.5 * b - -2e0",
    "a / b",
    "(a - b) / (a - b)",
    "1 / (b - 2)",
    '-a * "c x" ** 2',
    'LN(a) + sqrt(b) - exp("c x" / 10)',
    "abs(a) > 2 AND b <> 1",
    "b = 1 OR a < 0 AND NOT smoker",
    "NOT (a >= 1 OR smoker)",
    "smoker AND NULL",
    "smoker = (b > 0)",
    "b IN (1, 2, NULL)",
    "b NOT IN (1, -2)",
    "a BETWEEN b AND 2",
    "a NOT BETWEEN -1 AND b",
    "a IS NULL OR smoker IS NOT NULL",
    "CASE WHEN a > b THEN a WHEN smoker THEN b END",
    "CASE b WHEN 1 THEN 10 WHEN 2 THEN a ELSE 30 END",
    "coalesce(a, b, 7)",
    "ifnull(smoker, FALSE)",
    'greatest(a, b, 0) - least(a, "c x")',
    "nullif(b, 0) * 2",
    "round(a) + floor(a) * 100 + ceil(a / 2)",
    'round("c x")',
    "power(abs(a), 0.5)",
    "city = 'Oslo'",
    "'It''s' <> city",
    "city IN ('Oslo', 'Nowhere') OR size = 'S'",
    "city NOT IN ('Rome')",
    "CASE WHEN city IS NULL THEN -1 WHEN size IN ('M') AND CITY <> 'Rome' THEN a ELSE b END",
]  # fmt: skip


@pytest.fixture(scope="module")
def derived() -> list[tuple[np.ndarray, int]]:
    """All of them in one recipe: each one's column, and how many training rows lack it."""
    steps = [{"step": "derive", "name": f"made {i}", "expression": text} for i, text in enumerate(EXPRESSIONS)]
    recipe, made = fitted(learning_data(), *steps)
    assert [c.name for c in recipe.signature.columns if c.tensor == "numeric"][4:] == [step["name"] for step in steps]
    return [(made[f"made {i}"], recipe.report[i]["missing"]) for i in range(len(steps))]


@pytest.mark.parametrize("number", range(len(EXPRESSIONS)), ids=EXPRESSIONS)
def test_a_derived_column_is_what_duckdb_computes(derived: list[tuple[np.ndarray, int]], number: int) -> None:
    expected = by_duckdb(re.sub(r"\b(ln|sqrt|exp)\(", r"safe_\1(", EXPRESSIONS[number], flags=re.IGNORECASE))
    made, missing = derived[number]
    assert np.isnan(expected[: N // 2]).sum() == missing
    expected[np.abs(expected) > np.finfo(np.float32).max] = np.nan
    np.testing.assert_allclose(made, expected.astype(np.float32), rtol=2e-7)


@pytest.mark.parametrize(
    ("expression", "word"),
    [
        ("a +", "syntax error"),
        ("a; DROP TABLE rows", "syntax error"),
        ("a > 0 AND 'x' IS NULL", "text constant"),
        ("true); SELECT 1 WHERE (true", "not several statements"),
        ("(SELECT 1)", "takes no subquery"),
        ("nothing + 1", "'nothing' is not one column"),
        ("1 + 2", "names no column"),
        ("city", "is text"),
        ("a + city", "has text where a number"),
        ("a AND smoker", "has a number where true or false"),
        ("smoker + 1", "CASE WHEN"),
        ("a = smoker", "compares a number with true or false"),
        ("city < 'Oslo'", "by = <> and IN only"),
        ("city = size", "values in quotes only"),
        ("city = ''", "use IS NULL"),
        ("a = 'Oslo'", "values in quotes only"),
        ("a IS DISTINCT FROM b", "takes no compare_distinct_from"),
        ("log(a)", "takes no log of 1; there are"),
        ("round(a, 2)", "takes no round of 2"),
        ("read_csv('/etc/passwd')", "there is no function 'read_csv'"),
        ("random() + a", "there is no function 'random'"),
        ("avg(a)", "there is no function 'avg' here; there are abs, ceil, .*, sqrt$"),
        ("CAST(a AS VARCHAR)", "takes no"),
        ("CASE WHEN smoker THEN a ELSE smoker END", "numbers alone"),
        ("a / 0", "missing in every training row"),
        ("1e999 + a", "no number of 64 bits"),
        ("+".join(["a"] * 900), "nested too deeply"),
        (reduce(lambda x, _: f"CASE {x} WHEN 1 THEN 1 ELSE 0 END", range(14), "a"), "write CASE WHEN x ="),
    ],
)
def test_what_is_no_expression_of_one_row_is_refused(data: LearningData, expression: str, word: str) -> None:
    with pytest.raises(InvalidSpec, match=word) as caught:
        fitted(data, {"step": "derive", "name": "made", "expression": expression})
    assert caught.value.errors[0].loc == ("features", "steps", 0, "expression")


FUNCTIONS = {"mean": "avg", "std": "stddev_samp", "min": "min", "max": "max", "count": "count", "median": "median"}


def test_aggregates_are_those_of_training_rows_of_the_category(data: LearningData) -> None:
    unseen = CATEGORIES[: N // 2, 0] == "Rome"
    categories = np.where(unseen[:, None], np.asarray([["Oslo", "S"]], object), CATEGORIES[: N // 2])
    train = Part({"numeric": data.train.inputs["numeric"], "categorical": categories}, data.train.y)
    step = {"step": "aggregate", "by": "city", "column": "a", "functions": list(FUNCTIONS)}
    recipe, made = fitted(replace(data, train=train), step)
    frame = pl.DataFrame({"city": categories[:, 0].astype(str), "a": NUMBERS[: N // 2, 0].astype(np.float64)})
    frame = frame.with_columns(pl.col("a").fill_nan(None))
    with duckdb.connect(":memory:") as session:
        session.register("rows", frame.to_arrow(compat_level=pl.CompatLevel.oldest()))
        columns = ", ".join(f"{sql}(a)" for sql in FUNCTIONS.values())
        grouped = session.execute(f"SELECT city, {columns} FROM rows GROUP BY 1").fetchall()  # noqa: S608
        of_all = session.execute(f"SELECT {columns} FROM rows").fetchall()[0]  # noqa: S608
    of_city = {city: found for city, *found in grouped}
    of_city["Rome"] = [0 if name == "count" else x for name, x in zip(FUNCTIONS, of_all, strict=True)]
    expected = np.asarray([of_city[city] for city in CATEGORIES[:, 0]], np.float64)
    for j, name in enumerate(FUNCTIONS):
        np.testing.assert_allclose(made[f"a {name} by city"], expected[:, j], rtol=1e-6)
    assert recipe.report[0]["categories"] == 3
    assert [c.name for c in recipe.signature.columns[:4]] == ["a", "b", "c x", "smoker"]


def test_a_category_that_cannot_tell_gets_what_all_rows_have_and_later_steps_use_it(data: LearningData) -> None:
    x, cities = data.train.inputs["numeric"].copy(), data.train.inputs["categorical"].copy()
    cities[0, 0], cities[1, 0] = "Single", "Empty"
    x[0, 0], x[1, 0] = 5.0, np.nan
    train = Part({"numeric": x, "categorical": cities}, data.train.y)
    steps = [
        {"step": "aggregate", "by": "city", "column": "a", "functions": ["mean", "std"]},
        {"step": "derive", "name": "more", "expression": 'a - "a mean by city"'},
    ]
    recipe, _ = fit_recipe([STEP.validate_python(step) for step in steps], replace(data, train=train))
    made = recipe.transform({"numeric": x[:2], "categorical": cities[:2]}, 1)["numeric"]
    seen = x[~np.isnan(x[:, 0]), 0].astype(np.float64)
    np.testing.assert_allclose(made[:, 4:6], [[5, seen.std(ddof=1)], [seen.mean(), seen.std(ddof=1)]], rtol=1e-6)
    np.testing.assert_allclose(made[:, 6], [0, np.nan])


@pytest.mark.parametrize(
    ("step", "loc", "word"),
    [
        ({"by": "a", "column": "b"}, "by", "not a used column of categories"),
        ({"by": "city", "column": "size"}, "column", "not a used column of numbers"),
        ({"by": "city", "column": "y"}, "column", "is the target"),
    ],
)
def test_aggregates_of_what_does_not_suit_are_refused_before_they_are_queued(
    data: LearningData, step: dict[str, Any], loc: str, word: str
) -> None:
    types = {c.name: c.type for c in COLUMNS} | {"y": "integer"}
    spec = FeatureSpec.model_validate({"steps": [{"step": "aggregate", **step}]})
    with pytest.raises(InvalidSpec, match=word) as caught:
        spec.check_steps(types, "y")
    assert caught.value.errors[0].loc == ("features", "steps", 0, loc)
    if word != "is the target":
        with pytest.raises(AimassError, match=word):
            fitted(data, {"step": "aggregate", **step})


def test_a_spread_of_one_value_is_told_as_null(data: LearningData) -> None:
    """JSON, of which the card is, has no NaN."""
    x = np.full_like(data.train.inputs["numeric"], np.nan)
    x[0] = 5
    train = Part(data.train.inputs | {"numeric": x}, data.train.y)
    step = {"step": "aggregate", "by": "city", "column": "a", "functions": ["mean", "std"]}
    recipe, _ = fit_recipe([STEP.validate_python(step)], replace(data, train=train))
    assert recipe.report[0]["of_all_rows"] == {"mean": 5.0, "std": None}


def test_functions_are_named_once() -> None:
    with pytest.raises(ValidationError, match="names one twice"):
        STEP.validate_python({"step": "aggregate", "by": "a", "column": "b", "functions": ["mean", "mean"]})
