"""From a typed table to tensors, classes and parts."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.errors import InvalidData, InvalidSpec
from app.core.signature import Column, Signature, Tensor
from app.specs.jobs import TrainSpec
from app.specs.splits import SplitSpec
from workers.data.prepare import Prepared, prepare
from workers.data.splits import load_split, split_rows
from workers.data.tables import table_inputs
from workers.data.values import as_numbers, as_text, check_classes, coarse_step, read_target
from workers.jobs import compress, train

MakeJob = Callable[..., Any]


def prepared(make_job: MakeJob, frame: pl.DataFrame, **spec: Any) -> Prepared:
    job = make_job(frame, family="linear", **spec)
    return prepare(job, TrainSpec.model_validate(job.spec).check_family())


def test_a_split_is_disjoint_stratified_and_repeatable(tmp_path: Path):
    y = np.asarray([0] * 80 + [1] * 20)
    split = split_rows(y, "classification", SplitSpec())
    assert split.sizes() == {"train": 70, "validation": 10, "test": 20}
    assert sorted([*split.train, *split.validation, *split.test]) == list(range(100))
    assert [int(y[rows].sum()) for rows in (split.train, split.validation, split.test)] == [14, 2, 4]
    again = split_rows(y, "classification", SplitSpec())
    assert again.test.tolist() == split.test.tolist()
    other = split_rows(y, "classification", SplitSpec(seed=1))
    assert other.test.tolist() != split.test.tolist()
    split.save(np.arange(1000, 1100), tmp_path / "split.parquet")
    kept = np.asarray([i for i in range(1000, 1100) if i != 1000 + split.test[0]])
    loaded = load_split(tmp_path / "split.parquet", kept)
    assert kept[loaded.test].tolist() == [1000 + i for i in split.test[1:]]


def test_stratified_regression_is_refused():
    with pytest.raises(InvalidData, match="needs classes"):
        split_rows(np.arange(50.0), "regression", SplitSpec(method="stratified"))


def test_labels_as_a_person_writes_them():
    assert as_text(pl.Series([1.0, None, 0.0])).to_list() == ["1", None, "0"]
    assert as_text(pl.Series([1.5, 2.0])).to_list() == ["1.5", "2"]
    assert as_text(pl.Series([True, False])).to_list() == ["true", "false"]
    assert check_classes(pl.Series(["10", "9", "-1"])) == ("-1", "9", "10")
    assert read_target(pl.Series("t", ["b", "a", "b"]), "classification").y.tolist() == [1, 0, 1]


def test_columns_are_read_as_the_signature_says():
    columns = (
        Column("text", "number", "numeric", 0), Column("flag", "boolean", "numeric", 1),
        Column("code", "category", "categorical", 0),
    )  # fmt: skip
    tensors = (Tensor("numeric", "FP32", (-1, 2)), Tensor("categorical", "BYTES", (-1, 1)))
    signature = Signature("classification", tensors, (), columns)
    frame = pl.DataFrame({"text": [" 1.5", "many", None], "flag": ["Yes", "no", "perhaps"], "code": [7, None, 8]})
    inputs = table_inputs(frame, signature)
    expected = np.asarray([[1.5, 1], [np.nan, 0], [np.nan, np.nan]], np.float32)
    assert np.array_equal(inputs["numeric"], expected, equal_nan=True)
    assert inputs["categorical"].tolist() == [["7"], [""], ["8"]]


@given(st.lists(st.integers(0, 5), min_size=10, max_size=80).filter(lambda labels: labels.count(labels[0]) < 9))
def test_any_labels_are_divided_whole(labels: list[int]):
    y = np.asarray(labels)
    try:
        split = split_rows(y, "classification", SplitSpec())
    except InvalidData:
        return  # the training rows hold one class only
    assert sorted([*split.train, *split.validation, *split.test]) == list(range(len(y)))


def test_rare_classes_leave_the_others_in_proportion():
    y = np.asarray([0] * 900 + [1] * 90 + [2, 3, 4, 5, 5])
    split = split_rows(y, "classification", SplitSpec())
    assert [int((y[rows] == 1).sum()) for rows in (split.train, split.validation, split.test)] == [63, 9, 18]
    lone = split_rows(np.asarray([0] * 80 + [1] * 20 + [2]), "classification", SplitSpec())
    assert lone.sizes() == {"train": 71, "validation": 10, "test": 20}


def test_classes_that_a_part_lacks_are_named():
    y = np.asarray([0] * 50 + [1] * 50 + [2])
    split = split_rows(y, "classification", SplitSpec())
    [told] = split.lacks(("a", "b", "lone"), y)
    assert told.endswith(": 'lone'")
    assert told.startswith("classes without a t")


def test_labels_of_one_number_keep_one_order():
    assert check_classes(pl.Series(["1", "01", "10", "9.5"])) == ("01", "1", "9.5", "10")
    assert check_classes(pl.Series(["01", "1", "9.5", "10"])) == ("01", "1", "9.5", "10")
    assert check_classes(pl.Series(["1_0", "9"])) == ("1_0", "9")


def test_a_value_is_the_same_text_whatever_the_others_are():
    """A version is compressed later with all rows at hand, also those that were dropped in training."""
    frame = pl.DataFrame({"code": [1.0, 2.0] * 60 + [1.5, 2.5], "gap": [0.1] * 120 + [None, None]})
    frame = frame.with_columns(target=pl.col("code").cast(pl.Int64).cast(pl.String))
    assert as_text(frame["code"]).unique().sort().to_list() == ["1", "1.5", "2", "2.5"]
    assert as_text(frame["code"][:3]).to_list() == ["1", "2", "1"]


def test_dates_as_a_person_writes_them():
    dates = pl.Series([datetime(2024, 3, 1), datetime(2024, 3, 1, 10, 30), None])  # noqa: DTZ001 - stored without a zone
    assert as_text(dates).to_list() == ["2024-03-01", "2024-03-01T10:30:00", None]
    assert as_numbers(dates, "number").to_list() == pytest.approx([19783.0, 19783.4375, None])


def test_a_boolean_has_two_values():
    assert as_numbers(pl.Series([0, 1, 2, None]), "boolean").to_list() == [0.0, 1.0, None, None]
    assert as_numbers(pl.Series([True, False]), "boolean").to_list() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("values", "step"),
    [([20240101, 20240128], 2.0), ([20000101, 20240128], None), ([1e9, 1e9 + 1], 64.0), ([0.1, 0.2], None)],
)
def test_what_a_32_bit_float_cannot_tell_apart(values: list[float], step: float | None):
    assert coarse_step(pl.Series(values)) == step


def test_columns_that_cannot_be_read_are_told_of(make_job: MakeJob):
    frame = pl.DataFrame(
        {
            "price": ["1.5", "7 kg", "2", "x"] * 10,
            "word": ["ja", "nein"] * 20,
            "day": [datetime(2024, 3, 1 + i % 20) for i in range(40)],  # noqa: DTZ001 - stored without a zone
            "target": ["a", "b"] * 20,
        }
    )
    types = {"price": "number", "day": "number"}
    made = prepared(make_job, frame, features={"types": types, "drop": ["word"]})
    assert made.notes.warnings[:2] == [
        "column 'price': 20 of 40 values cannot be read as number and are missing: '7 kg', 'x'",
        "column 'day' is read as days since 1970-01-01 UTC, and expects them in predictions",
    ]
    with pytest.raises(InvalidSpec, match="no value of 'word' can be read as boolean: 'ja', 'nein'") as caught:
        prepared(make_job, frame, features={"types": {"word": "boolean"}})
    assert caught.value.errors[0].loc == ("features", "types", "word")


def test_a_value_that_is_there_or_not_is_two_things(make_job: MakeJob):
    frame = pl.DataFrame(
        {
            "x": [float(i) for i in range(60)],
            "deck": ["known", None, None] * 20,
            "empty": pl.Series([None] * 60, dtype=pl.String),
            "same": ["s"] * 60,
            "target": ["yes", "no", "no"] * 20,
        }
    )
    for family in ("linear", "gbdt", "random_forest", "mlp"):
        job = make_job(frame, name=family, family=family, training={"epochs": 2})
        result = train.run(job)
        assert [c["name"] for c in result["signature"]["columns"]] == ["x", "deck"]
    assert prepared(make_job, frame).notes.warnings == [
        "column 'empty' is left out: it has one value or none", "column 'same' is left out: it has one value or none",
    ]  # fmt: skip


def test_repeated_rows_across_the_parts_are_told_of(make_job: MakeJob, wine: pl.DataFrame):
    assert prepared(make_job, wine).notes.warnings == []
    twice = prepared(make_job, pl.concat([wine, wine]))
    [told] = twice.notes.warnings
    assert "test rows are the same as a training row" in told
    few = pl.DataFrame({"x": ["a", "b", "c"] * 20, "target": ["p", "q"] * 30})
    assert prepared(make_job, few).notes.warnings == []
    clean = prepared(make_job, pl.concat([wine, wine]), clean=[{"step": "drop_duplicates"}])
    assert (clean.notes.warnings, clean.notes.counts["drop_duplicates"]) == ([], 178)


def test_repeated_pictures_are_told_of(make_job: MakeJob, digits: pl.DataFrame):
    spec = {"kind": "train", "model": "m", "dataset": "d@1", "task": "classification", "target": "label"}
    told = []
    for name, frame in (("once", digits.head(100)), ("twice", pl.concat([digits.head(100)] * 2))):
        job = make_job(frame, data="image", name=name)
        told.append(prepare(job, TrainSpec.model_validate({**spec, "family": "cnn"}).check_family()).notes.warnings)
    assert [any("test rows are the same as a training row" in w for w in found) for found in told] == [False, True]


def test_names_that_are_patterns_to_polars(make_job: MakeJob):
    frame = pl.DataFrame({"^a$": [1.0, 2.0, None, 4.0] * 10, "*": ["x", "y"] * 20, "^.*$": ["p", "q", "q", "p"] * 10})
    clean = [{"step": "drop_missing", "columns": ["^a$"]}, {"step": "drop_duplicates"}]
    made = prepared(make_job, frame, target="^.*$", clean=clean[:1])
    assert made.notes.counts == {"missing_target": 0, "drop_missing": 10}
    assert [c.name for c in made.signature.columns] == ["^a$", "*"]
    with pytest.raises(InvalidData, match="3 usable rows are too few"):
        prepared(make_job, frame, target="^.*$", clean=clean)


def test_a_target_beyond_a_prediction_is_refused(make_job: MakeJob):
    frame = pl.DataFrame({"x": [float(i) for i in range(40)], "target": [i * 1e38 for i in range(40)]})
    with pytest.raises(InvalidData, match="divide it by a constant"):
        prepared(make_job, frame, task="regression")
    near = frame.with_columns(target=1e9 + pl.col("x"))
    assert "told apart by 64 only" in prepared(make_job, near, task="regression").notes.warnings[0]


def test_a_category_that_was_a_number_is_compressed_as_it_was_trained(make_job: MakeJob):
    """The fraction is in a row that training left out."""
    rng = np.random.default_rng(0)
    code = rng.integers(0, 4, 400).astype(float)
    y = np.where(code + rng.normal(0, 0.3, 400) > 1.5, "high", "low")
    frame = pl.DataFrame({"code": [*code, 7.5], "x": [*rng.normal(size=400), None], "target": [*y, "low"]})
    spec = {"features": {"types": {"code": "category"}}, "clean": [{"step": "drop_missing", "columns": ["x"]}]}
    job = make_job(frame, family="random_forest", params={"n_estimators": 30}, **spec)
    trained = train.run(job)
    later = make_job(frame, name="later", kind="compress")
    later.spec = {"kind": "compress", "model": "m", "version": 1, "budget": {"max_metric_drop": 0.5}}
    job.output.rename(later.input / "model")
    [variant] = compress.run(later)["variants"]
    assert variant["metrics"]["roc_auc"] > trained["metrics"]["roc_auc"] - 0.05
