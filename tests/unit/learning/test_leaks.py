"""Warnings of columns that may be known only after the target, and their absence on clean data."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from app.specs.jobs import TrainSpec
from workers.data.prepare import prepare
from workers.evaluation.leaks import Associations, look_for_leaks
from workers.jobs import train

MakeJob = Callable[..., Any]


def found(make_job: MakeJob, frame: pl.DataFrame, **spec: Any) -> Associations:
    job = make_job(frame, family="linear", **spec)
    parsed = TrainSpec.model_validate(job.spec).check_family()
    prepared = prepare(job, parsed)
    inputs, y = prepared.part("test")
    data = prepared.learning(parsed, 1, "cpu")
    return look_for_leaks(data, inputs, data.standard.shrink(y) if parsed.task == "regression" else y)


def test_columns_are_ranked_by_what_they_tell(make_job: MakeJob, mixed: pl.DataFrame):
    frame = mixed.drop("amount").with_columns(noise=pl.Series(np.random.default_rng(0).normal(size=len(mixed))))
    ranked = found(make_job, frame)
    assert [line["column"] for line in ranked.columns[:2]] == ["age", "city"]
    scores = {line["column"]: line["score"] for line in ranked.columns}
    assert (scores["age"] > 0.3, scores["noise"] < 0.15) == (True, True)
    assert ranked.hints == []
    job = make_job(frame, family="linear", name="train")
    train.run(job)
    assert json.loads((job.output / "card.json").read_text())["associations"] == ranked.columns


def test_regression_is_measured_as_well(make_job: MakeJob, mixed: pl.DataFrame, diabetes: pl.DataFrame):
    ranked = found(make_job, mixed.drop("target"), task="regression", target="amount")
    assert [line["column"] for line in ranked.columns[:2]] == ["city", "age"]
    assert 0.3 < ranked.columns[0]["score"] < 0.9
    noise = np.random.default_rng(0).normal(0, 40, len(diabetes))
    later = diabetes.with_columns(cost=pl.col("target") + noise)
    [hint] = found(make_job, later, task="regression").hints
    assert "lean on column 'cost'" in hint


def test_a_gap_that_gives_the_target_away(make_job: MakeJob, mixed: pl.DataFrame):
    """As Titanic's `body`, which only some of the dead have: as a number and as a category."""
    rng = np.random.default_rng(5)
    no = (mixed["target"] == "no").to_numpy() & (rng.random(len(mixed)) < 0.2)
    body = [float(i % 300) if there else None for i, there in enumerate(no)]
    for kind in (pl.Float64, pl.String):
        frame = mixed.drop("amount").with_columns(body=pl.Series(body).cast(kind))
        [hint] = found(make_job, frame, name=str(kind), features={"types": {"body": "category"}}).hints
        assert hint.startswith("column 'body' is there only in rows of class 'no'")
    by_chance = [float(i % 300) if rng.random() < 0.2 else None for i in range(len(mixed))]
    assert found(make_job, mixed.drop("amount").with_columns(body=pl.Series(by_chance))).hints == []


def test_real_leaks_are_found(make_job: MakeJob, shared_data: Path):
    titanic = pl.read_csv(shared_data / "tabular/titanic.csv").rename({"survived": "target"})
    assert "column 'alive' alone predicts" in found(make_job, titanic).hints[0]
    rng = np.random.default_rng(0)
    # `boat` is not among the shared file's columns: nearly all survivors have one, and few others.
    saved = (titanic["target"] == 1).to_numpy()
    boat = np.where(np.where(saved, rng.random(891) < 0.95, rng.random(891) < 0.02), "12", None)
    [hint] = found(make_job, titanic.drop("alive").with_columns(boat=pl.Series(boat.tolist(), dtype=pl.String))).hints
    assert "lean on column 'boat'" in hint
    raw = zipfile.ZipFile(shared_data / "tabular/bank.zip").read("bank/bank.csv")
    bank = pl.read_csv(io.BytesIO(raw), separator=";", infer_schema_length=None).rename({"y": "target"})
    [hint] = found(make_job, bank).hints
    assert "lean on column 'duration'" in hint
    assert found(make_job, bank.drop("duration")).hints == []


def test_clean_data_raises_no_alarm(
    make_job: MakeJob, shared_data: Path, cancer: pl.DataFrame, wine: pl.DataFrame, diabetes: pl.DataFrame
):
    folder = shared_data / "tabular"
    titanic = pl.read_csv(folder / "titanic.csv").drop("alive")
    adult = pl.read_csv(folder / "adult.data.csv.gz", has_header=False, infer_schema_length=None)
    credit = pl.read_csv(folder / "UCI_Credit_Card.csv.gz", infer_schema_length=None).drop("ID")
    telco = pl.read_csv(folder / "Telco-Customer-Churn.csv", infer_schema_length=None).drop("customerID")
    for frame in (titanic, adult, credit, telco):
        target = frame.columns[-1] if "survived" not in frame.columns else "survived"
        assert found(make_job, frame, target=target).hints == []
    for frame in (cancer, wine):
        assert found(make_job, frame).hints == []
    california = pl.read_csv(folder / "california_housing.csv")
    diamonds = pl.read_csv(folder / "diamonds.csv.gz")
    for frame, target in ((california, "median_house_value"), (diamonds, "price"), (diabetes, "target")):
        assert found(make_job, frame, task="regression", target=target).hints == []
