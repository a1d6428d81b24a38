"""Divisions by a column, folds, and what is said of columns that cannot divide."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from app.core.errors import InvalidData, InvalidInput, InvalidSpec
from app.specs.jobs import TrainSpec
from app.specs.splits import SplitSpec
from workers.data.division import Shuffled
from workers.data.prepare import prepare
from workers.data.slices import slice_labels
from workers.data.splits import Split, divide_rows, load_split, split_rows

MakeJob = Callable[..., Any]
Labels = list[tuple[int, int]]
ROWS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), min_size=12, max_size=90)
PARTS = ("train", "validation", "test")


def parts(split: Split) -> list[np.ndarray]:
    return [getattr(split, name) for name in PARTS]


def whole(split: Split, count: int) -> bool:
    """Every row is in one part, and no part is empty."""
    return sorted(np.concatenate(parts(split)).tolist()) == list(range(count)) and all(map(len, parts(split)))


@settings(max_examples=25, deadline=None)
@given(ROWS, st.integers(0, 3))
def test_no_group_is_in_two_parts(rows: Labels, seed: int):
    y, groups = (np.asarray(column) for column in zip(*rows, strict=True))
    by, spec = pl.Series("who", groups), SplitSpec(group="who", seed=seed)
    try:
        division = divide_rows(y, "classification", spec, by=by)
    except InvalidInput:
        return  # too few groups, or one class only in training
    split = division.split
    assert whole(split, len(y))
    assert split.method == "group"
    assert sum(len(np.unique(groups[rows])) for rows in parts(split)) == len(np.unique(groups))
    again = split_rows(y, "classification", spec, by=by)
    assert all(np.array_equal(a, b) for a, b in zip(parts(again), parts(split), strict=True))
    try:
        folds = division.folds(3)
    except InvalidInput:
        return
    check_folds(folds, split)
    for fold in folds:
        assert sum(len(np.unique(groups[rows])) for rows in parts(fold)) == len(
            np.unique(groups[np.concatenate(parts(fold))])
        )


def check_folds(folds: tuple[Split, ...], split: Split) -> None:
    """Each row that is not a test row is held out once, and test rows are never seen."""
    held = np.concatenate([fold.test for fold in folds])
    assert sorted(held.tolist()) == sorted(np.concatenate([split.train, split.validation]).tolist())
    for fold in folds:
        seen = np.concatenate(parts(fold))
        assert len(np.unique(seen)) == len(seen) == len(held)
        assert not np.isin(seen, split.test).any()


@settings(max_examples=25, deadline=None)
@given(ROWS)
def test_later_parts_are_newer_and_ties_stay_together(rows: Labels):
    y, times = (np.asarray(column) for column in zip(*rows, strict=True))
    try:
        division = divide_rows(y * 1.0, "regression", SplitSpec(time="when"), by=pl.Series("when", times))
    except InvalidInput:
        assert len(np.unique(times)) < 3
        return
    assert whole(division.split, len(y))
    train, validation, test = (times[rows] for rows in parts(division.split))
    assert train.max() < validation.min() <= validation.max() < test.min()
    try:
        folds = division.folds(2)
    except InvalidInput:
        assert len(np.unique(times[~np.isin(np.arange(len(y)), division.split.test)])) < 6
        return
    for fold in folds:
        before, between, after = (times[rows] for rows in parts(fold))
        assert before.max() < between.min() <= between.max() < after.min() <= after.max() < test.min()


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_folds_of_random_rows(task: Any):
    y = np.random.default_rng(0).integers(0, 3, 200)
    division = divide_rows(y, task, SplitSpec(method="auto" if task == "classification" else "random"))
    folds = division.folds(4)
    check_folds(folds, division.split)
    if task == "classification":
        shares = [np.bincount(y[fold.test]) / len(fold.test) for fold in folds]
        assert np.ptp(shares, axis=0).max() < 0.05
    sizes = [len(fold.test) for fold in folds]
    assert max(sizes) - min(sizes) <= 1


def test_groups_are_in_proportion_to_rows_and_classes():
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 150, 3000)
    y = (rng.random(150) < 0.3)[groups].astype(int)
    split = split_rows(y, "classification", SplitSpec(group="g"), by=pl.Series("g", groups))
    sizes = [len(rows) / 3000 for rows in parts(split)]
    assert sizes == pytest.approx([0.7, 0.1, 0.2], abs=0.03)
    assert [y[rows].mean() for rows in parts(split)] == pytest.approx([y.mean()] * 3, abs=0.05)


def test_large_groups_are_not_always_trained_on():
    groups = np.repeat(np.arange(12), [40] * 3 + [10] * 9)
    y = np.arange(len(groups)) % 2
    tested = set()
    for seed in range(8):
        split = split_rows(y, "classification", SplitSpec(group="g", seed=seed), by=pl.Series("g", groups))
        assert len(split.test) == pytest.approx(0.2 * len(y), abs=10)
        tested |= set(groups[split.test].tolist())
    assert tested & {0, 1, 2}
    assert tested & set(range(3, 12))


def test_a_share_of_nearly_all_rows_leaves_one():
    for strata in (None, np.arange(10) % 2):
        kept, cut = Shuffled(strata, 0).cut(np.arange(10), 0.48 / 0.5)
        assert (len(kept), len(cut)) == (1, 9)


def test_very_many_groups():
    groups = np.repeat(np.arange(5000), 2)
    y = (groups % 3 == 0).astype(int)
    division = divide_rows(y, "classification", SplitSpec(group="g"), by=pl.Series("g", groups))
    assert [len(rows) for rows in parts(division.split)] == pytest.approx([7000, 1000, 2000], abs=20)
    check_folds(division.folds(2), division.split)


def test_dates_divide_as_they_follow_each_other():
    days = [datetime(2024, 1, 1) + timedelta(days=(i * 7) % 100) for i in range(100)]  # noqa: DTZ001 - no zone
    split = split_rows(np.arange(100.0), "regression", SplitSpec(time="day"), by=pl.Series("day", days))
    assert split.sizes() == {"train": 70, "validation": 10, "test": 20}
    assert min(days[i] for i in split.test) == datetime(2024, 3, 21)  # noqa: DTZ001


def test_a_column_names_the_parts():
    names = ["Train"] * 60 + ["dev"] * 20 + [" test "] * 20
    y = np.asarray([0, 1] * 50)
    split = split_rows(y, "classification", SplitSpec(column="part"), by=pl.Series("part", names))
    assert (split.method, split.sizes()) == ("column", {"train": 60, "validation": 20, "test": 20})
    two = pl.Series("part", ["train"] * 80 + ["valid"] * 20)
    split = split_rows(y, "classification", SplitSpec(column="part"), by=two)
    assert split.test.tolist() == list(range(80, 100))
    assert split.sizes() == {"train": 72, "validation": 8, "test": 20}


@pytest.mark.parametrize(
    ("method", "values", "words"),
    [
        ("group", [*["a", "b", "c"] * 6, None, "a"], "'by' is missing in 1 of 20 rows; fill them, or drop those"),
        ("group", ["a"] * 20, "'by' has 1 group, and each part needs one"),
        ("group", ["a", "b"] * 10, "'by' has 2 groups"),
        (
            "time",
            ["yesterday", "03/04/2024"] * 10,
            "no dates or numbers, but 'yesterday', '03/04/2024'; write dates as",
        ),
        ("time", [True, False] * 10, "no dates or numbers, but"),
        ("time", [1, 2] * 10, "'by' has 2 different times"),
        ("time", [float("nan"), *range(19)], "'by' is missing in 1 of 20 rows"),
        ("column", ["train", "hold-out"] * 10, "'by' holds 'hold-out'; parts are named train, training, val"),
        ("column", ["train"] * 20, "'by' names train rows only"),
        ("column", ["test", "val"] * 10, "'by' names test and validation rows only"),
    ],
)
def test_columns_that_cannot_divide(method: str, values: list[Any], words: str):
    y = np.asarray([0, 1, 1, 0] * 5)
    with pytest.raises(InvalidData) as caught:
        divide_rows(y, "classification", SplitSpec(**{method: "by"}), by=pl.Series("by", values, strict=False))
    assert words in caught.value.detail
    assert caught.value.errors[0].loc == ("split", method)


@pytest.mark.parametrize(
    ("split", "field", "words"),
    [
        ({"method": "group"}, "group", "is required"),
        ({"method": "time", "group": "g"}, "group", "does not go with the method 'time'"),
        ({"method": "random", "column": "g"}, "column", "set the method to 'column'"),
        ({"group": "g", "time": "t"}, "time", "leave out this one or 'group'"),
    ],
)
def test_methods_and_columns_that_do_not_go_together(split: dict[str, str], field: str, words: str):
    with pytest.raises(ValidationError, match=words) as caught:
        SplitSpec.model_validate(split)
    assert caught.value.errors()[0]["loc"] == (field,)


@pytest.mark.parametrize(
    ("change", "loc"),
    [
        ({"split": {"group": "target"}}, ("split", "group")),
        ({"evaluation": {"slices": ["a", "target"]}}, ("evaluation", "slices", 1)),
        ({"task": "regression", "split": {"method": "stratified"}}, ("split", "method")),
        ({"metrics": ["mape"]}, ("metrics",)),
    ],
)
def test_what_the_spec_alone_shows(change: dict[str, Any], loc: tuple[Any, ...]):
    spec = {"kind": "train", "model": "m", "dataset": "d@1", "task": "classification", "target": "target"}
    with pytest.raises(InvalidSpec) as caught:
        TrainSpec.model_validate({**spec, "family": "linear", **change}).check_family()
    assert caught.value.errors[0].loc == loc


def prepared(make_job: MakeJob, frame: pl.DataFrame, **spec: Any) -> Any:
    job = make_job(frame, family="linear", **spec)
    return prepare(job, TrainSpec.model_validate(job.spec).check_family())


def test_what_divides_is_no_feature(make_job: MakeJob, wine: pl.DataFrame, tmp_path: Path):
    frame = wine.with_columns(
        who=pl.int_range(pl.len()) % 12, part=pl.Series(["train", "train", "test"] * 60).head(178)
    )
    names = set(wine.columns) - {"target"}
    by_group = prepared(make_job, frame.drop("part"), split={"group": "who"}, evaluation={"folds": 3})
    assert {column.name for column in by_group.signature.columns} == names
    asked = prepared(make_job, frame, split={"column": "part"}, features={"types": {"who": "category"}})
    assert {column.name for column in asked.signature.columns} == names | {"who"}
    by_group.split.save(by_group.row_ids, tmp_path / "split.parquet", by_group.closer.folds)
    saved = pl.read_parquet(tmp_path / "split.parquet")
    assert saved.group_by("fold").len().sort("fold")["len"].to_list() == [
        len(by_group.split.test), *(len(fold.test) for fold in by_group.closer.folds),
    ]  # fmt: skip
    loaded = load_split(tmp_path / "split.parquet", by_group.row_ids)
    assert all(np.array_equal(a, b) for a, b in zip(parts(loaded), parts(by_group.split), strict=True))


@pytest.mark.parametrize(
    ("change", "loc"),
    [
        ({"split": {"group": "nobody"}}, ("split", "group")),
        ({"evaluation": {"slices": ["nobody"]}}, ("evaluation", "slices", 0)),
        ({"evaluation": {"folds": 20}, "split": {"method": "random", "test": 0.8}}, ("evaluation", "folds")),
    ],
)
def test_columns_and_folds_are_checked_before_the_fit(
    make_job: MakeJob, wine: pl.DataFrame, change: dict[str, Any], loc: tuple[Any, ...]
):
    with pytest.raises(InvalidInput) as caught:
        prepared(make_job, wine, **change)
    assert caught.value.errors[0].loc == loc


def test_slices_of_values_and_of_quarters():
    cities = slice_labels(pl.Series(["Oslo", None, "Rome", "Oslo"]))
    assert cities.tolist() == ["Oslo", "(missing)", "Rome", "Oslo"]
    many = slice_labels(pl.Series([f"v{i // 2 if i < 60 else i}" for i in range(100)]))
    assert len(set(many.tolist())) == 21
    assert "(other values)" in many
    ages = slice_labels(pl.Series([float(i) for i in range(100)] + [None]))
    names, counts = np.unique(ages.astype(str), return_counts=True)
    assert dict(zip(names.tolist(), counts.tolist(), strict=True)) == {
        "(missing)": 1, "up to 24": 25, "over 24 up to 49": 25, "over 49 up to 74": 25, "over 74": 25,
    }  # fmt: skip
    assert slice_labels(pl.Series([7] * 30)).tolist() == ["7"] * 30
