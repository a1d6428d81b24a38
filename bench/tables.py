"""Tables with a column `part` that divides them as they are published, or into folds where nothing is."""

import io
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from sklearn.model_selection import KFold, train_test_split

PART = "part"
_FOLDS = 5
_SEED = 42
_ADULT = [
    "age", "workclass", "fnlwgt", "education", "education_num", "marital_status", "occupation", "relationship", "race",
    "sex", "capital_gain", "capital_loss", "hours_per_week", "native_country", "income",
]  # fmt: skip


@dataclass(frozen=True)
class Table:
    """How to read it, what it is for, and whether it is published with a test part, held out once, or in folds."""

    read: Callable[[Path], pl.DataFrame]
    target: str
    seconds: int
    folds: bool = False
    drop: tuple[str, ...] = field(default=())


def _adult(folder: Path) -> pl.DataFrame:
    parts = []
    for part, name in (("train", "adult.data.csv.gz"), ("test", "adult.test.csv.gz")):
        rows = pl.read_csv(folder / "tabular" / name, has_header=False, new_columns=_ADULT, infer_schema=False)
        rows = rows.drop_nulls("income")  # the last line is empty
        rows = rows.with_columns(pl.all().str.strip_chars()).with_columns(pl.col("income").str.strip_suffix("."))
        parts.append(rows.with_columns(pl.lit(part).alias(PART)))
    return pl.concat(parts).with_columns(pl.when(pl.col(pl.String) != "?").then(pl.col(pl.String)).name.keep())


def _intrusions(folder: Path) -> pl.DataFrame:
    names = pl.read_csv(folder / "attack" / "NSL-KDD_field_names.csv", has_header=False)["column_0"].to_list()
    parts = []
    for part, name in (("train", "KDDTrain+_20Percent.txt.gz"), ("test", "KDDTest+.txt.gz")):
        columns = [*names, "attack", "difficulty"]
        rows = pl.read_csv(folder / "attack" / name, has_header=False, new_columns=columns, infer_schema=False)
        rows = rows.with_columns(pl.when(pl.col("attack") == "normal").then(0).otherwise(1).alias("bad"))
        parts.append(rows.drop("attack", "difficulty").with_columns(pl.lit(part).alias(PART)))
    return pl.concat(parts)


def _csv(name: str) -> Callable[[Path], pl.DataFrame]:
    return lambda folder: pl.read_csv(folder / "tabular" / name, infer_schema=False)


def _bank(folder: Path) -> pl.DataFrame:
    with zipfile.ZipFile(folder / "tabular" / "bank.zip") as archive:
        raw = archive.read(next(name for name in archive.namelist() if name.endswith(".csv")))
    return pl.read_csv(io.BytesIO(raw), separator=";", infer_schema=False)


TABLES = {
    "adult": Table(_adult, "income", 300),
    "telco": Table(_csv("Telco-Customer-Churn.csv"), "Churn", 180, folds=True),
    "credit": Table(_csv("UCI_Credit_Card.csv.gz"), "Default", 300, folds=True, drop=("ID",)),
    "bank": Table(_bank, "y", 300, folds=True, drop=("duration",)),
    "housing": Table(_csv("california_housing.csv"), "median_house_value", 300),
    "diamonds": Table(_csv("diamonds.csv.gz"), "price", 300),
    "intrusions": Table(_intrusions, "bad", 300),
}


def divided(name: str, folder: Path, folds: int = _FOLDS, seed: int = 0) -> Iterator[pl.DataFrame]:
    """The table with `part`: train or test; as often as it has folds, of which the first `folds` are given."""
    table = TABLES[name]
    rows = table.read(folder)
    if PART in rows.columns:
        yield rows
        return
    at = np.arange(len(rows))
    if table.folds:
        tests = [test for _, test in KFold(_FOLDS, shuffle=True, random_state=_SEED + seed).split(at)][:folds]
    else:
        tests = [train_test_split(at, test_size=0.2, random_state=seed)[1]]
    for test in tests:
        yield rows.with_columns(pl.Series(PART, np.where(np.isin(at, test), "test", "train")))
