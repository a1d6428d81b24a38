"""Rows that a training leaves out: by SQL, and outliers of training rows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from app.core.errors import AimassError, InvalidSpec
from app.specs.jobs import TrainSpec
from workers.data.prepare import Prepared, prepare
from workers.data.sql import rows_where
from workers.jobs import compress, train

MakeJob = Callable[..., Any]
FRAME = pl.DataFrame(
    {
        "__row_id": range(6),
        "age": [10, 20, 30, 40, None, 60],
        "City": ["Oslo", "Rome", "Oslo", None, "Wien", "rome"],
        "a b": [1.5, 2.5, float("nan"), 4.5, 5.5, 6.5],
        'it\'s "x"': ["a", "b", "c", "d", "e", "f"],
        "day": pl.date_range(pl.date(2024, 1, 30), pl.date(2024, 2, 4), eager=True).cast(pl.Datetime),
        "x": [1] * 6,
        "X": [2] * 6,
    }
)


@pytest.mark.parametrize(
    ("predicate", "rows"),
    [
        ("age >= 20 AND NOT City = 'Rome'", [2, 5]),
        ("age IN (10, 20) OR age IS NULL", [0, 1, 4]),
        ("lower(city) LIKE 'ro%' -- both of them", [1, 5]),
        ('"a b" BETWEEN 2 AND 5', [1, 3]),
        ('"it\'s ""x""" >= \'e\'', [4, 5]),
        ("month(day) = 2", [2, 3, 4, 5]),
        ("day < '2024-02-01'", [0, 1]),
        ("CASE WHEN age > 30 THEN CAST(age AS VARCHAR) ELSE 'no' END = '40'", [3]),
        ("age / 20 > 1 AND sqrt(age) < 7.5", [2, 3]),
        ("true", list(range(6))),
    ],
)
def test_a_predicate_keeps_rows(predicate: str, rows: list[int]):
    assert rows_where(FRAME, predicate, ())["__row_id"].to_list() == rows


@pytest.mark.parametrize(
    ("predicate", "words"),
    [
        ("age >", "syntax error"),
        ("income > 3", "'income' is not one column"),
        ("x = 1", "not one column"),  # x or X?
        ("city > 3", "explicit cast"),
        ("true) LIMIT (1", "must be one predicate"),
        ("true) UNION SELECT 1 WHERE (true", "must be one predicate"),
        ("true) LIMIT 1 --", "syntax error"),
        ("true); SELECT 1 WHERE (true", "not several statements"),
        ("true) GROUP BY (1", "must be one predicate"),
        ("age IN (SELECT age FROM rows)", "no subquery"),
        ("EXISTS (SELECT * FROM read_csv('/etc/passwd'))", "no subquery"),
        ("sum(age) > 1", "no function 'sum'"),
        ("age > avg(age) OVER ()", "no window"),
        ("random() > 0.5", "no function 'random'"),
        ("current_setting('memory_limit') = ''", "no function 'current_setting'"),
        ("repeat('x', 1000000000) = ''", "no function 'repeat'"),
        ("now() > day", "no function"),
        ("main.abs(age) > 1", None),
        ("age > ?", "must be one predicate"),
        ("* = 1", "no star"),
        ("list_filter([1], lambda q: q > 1) = [1]", None),
        ("rows.age > 1", "not one column"),
        (f"age {'+ 1' * 900} > 3", "nested too deeply"),
    ],
)
def test_anything_else_is_refused(predicate: str, words: str | None):
    with pytest.raises(InvalidSpec, match=words) as caught:
        rows_where(FRAME, predicate, ("clean", 0, "where"))
    assert caught.value.errors[0].loc == ("clean", 0, "where")


def test_nothing_is_written(tmp_path: Path):
    with pytest.raises(InvalidSpec, match="Only SELECT"):
        rows_where(FRAME, f"true); COPY rows TO '{tmp_path}/stolen.csv'; SELECT (true", ("clean", 0, "where"))
    assert list(tmp_path.iterdir()) == []


def _prepared(make_job: MakeJob, frame: pl.DataFrame, **spec: Any) -> Prepared:
    job = make_job(frame, family="linear", **spec)
    return prepare(job, TrainSpec.model_validate(job.spec).check_family())


def test_a_filtered_version_is_compressed_by_the_rows_that_it_kept(make_job: MakeJob, mixed: pl.DataFrame):
    spec = {"clean": [{"step": "filter", "where": "age >= 40 OR plan = 'plus'"}], "features": {"drop": ["amount"]}}
    job = make_job(mixed, family="random_forest", params={"n_estimators": 40}, **spec)
    train.run(job)
    kept = mixed.select(((pl.col("age") >= 40) | (pl.col("plan") == "plus")).fill_null(value=False))["age"].sum()
    card = json.loads((job.output / "card.json").read_text())
    assert sum(card["split"]["rows"].values()) == kept
    assert card["data"]["dropped_rows"] == {"missing_target": 0, "filter": len(mixed) - kept}
    later = make_job(mixed, name="later", kind="compress")
    later.spec = {"kind": "compress", "model": "m", "version": 1, "budget": {"max_metric_drop": 0.5}}
    job.output.rename(later.input / "model")
    again = compress.run(later)
    assert again["rows"] == card["split"]["rows"]
    assert again["metrics"]["roc_auc"] == pytest.approx(card["metrics"]["test"]["roc_auc"])


def test_outliers_are_dropped_of_training_rows_alone(make_job: MakeJob):
    rng = np.random.default_rng(0)
    x = rng.normal(size=1000)
    x[rng.choice(1000, 50, replace=False)] = 100
    frame = pl.DataFrame({"x": x, "c": ["a", "b"] * 500, "target": ["p", "q", "q", "p"] * 250})
    for method in ({}, {"method": "z_score", "factor": 2}):
        made = _prepared(make_job, frame, clean=[{"step": "drop_outliers", **method}], evaluation={"folds": 3})
        parts = {name: made.part(name)[0]["numeric"] for name in ("train", "validation", "test")}
        assert [(parts[name] == 100).any() for name in parts] == [False, True, True]
        assert made.notes.counts["drop_outliers"] == 700 - len(parts["train"])
        for fold in made.closer.folds:
            values = made.inputs["numeric"]
            assert [(values[rows] == 100).any() for rows in (fold.train, fold.test)] == [False, True]


def test_outliers_of_columns_that_are_made_numbers(make_job: MakeJob, mixed: pl.DataFrame):
    far = pl.when(pl.int_range(pl.len()) % 40 == 0).then(5000).otherwise(pl.col("visits"))
    frame = mixed.with_columns(far.cast(pl.String).alias("visits"))
    types = {"visits": "number"}
    made = _prepared(make_job, frame, clean=[{"step": "drop_outliers"}], features={"types": types, "drop": ["amount"]})
    (visits,) = (column.index for column in made.signature.columns if column.name == "visits")
    parts = {name: made.part(name)[0]["numeric"][:, visits] for name in ("train", "test")}
    assert made.notes.counts["drop_outliers"] > 10
    assert [(values == 5000).any() for values in parts.values()] == [False, True]


@pytest.mark.parametrize(
    ("step", "where", "words"),
    [
        ({"columns": ["city"]}, ("columns", 0), "not a column of numbers"),
        ({"factor": 0.01}, ("factor",), "training rows would be dropped"),
    ],
)
def test_outliers_that_are_none(make_job: MakeJob, mixed: pl.DataFrame, step: dict[str, Any], where: Any, words: str):
    with pytest.raises(AimassError, match=words) as caught:
        _prepared(make_job, mixed, clean=[{"step": "drop_outliers", **step}])
    assert caught.value.errors[0].loc == ("clean", 0, *where)


def test_a_filter_that_keeps_nothing_is_told(make_job: MakeJob, mixed: pl.DataFrame):
    with pytest.raises(AimassError, match="true for no row") as caught:
        _prepared(make_job, mixed, clean=[{"step": "filter", "where": "age > 1000"}])
    assert caught.value.errors[0].loc == ("clean", 0, "where")
