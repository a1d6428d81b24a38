"""Real data sets, with their known quirks."""
# ruff: noqa: E501 - a table of expectations reads best in rows

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# name: rows, columns, a word of a warning, types of some columns
TABLES = {
    "tabular/Telco-Customer-Churn.csv": (7043, 21, "'customerID'", {"TotalCharges": "number", "Churn": "category", "customerID": "text", "SeniorCitizen": "integer"}),
    "tabular/adult.data.csv.gz": (32561, 15, "looks like data", {"column_1": "integer", "column_2": "category", "column_15": "category"}),
    "tabular/california_housing.csv": (20640, 10, "", {"total_bedrooms": "number", "ocean_proximity": "category"}),
    "tabular/bank.zip": (41188, 21, "left out: 'bank/README.md', 'bank/meta.json'", {"age": "integer", "euribor3m": "number", "y": "category"}),
    "tabular/titanic.csv": (891, 15, "'survived', 'alive' say the same", {"age": "number", "alone": "boolean", "deck": "category"}),
    "tabular/diamonds.csv.gz": (53940, 10, "repeat an earlier row: 146", {"carat": "number", "cut": "category", "price": "integer"}),
    "tabular/UCI_Credit_Card.csv.gz": (30000, 25, "'ID'", {"LIMIT_BAL": "number", "Default": "integer"}),
    "tabular/auto_imports.csv": (201, 26, "looks like data", {"column_2": "integer", "column_6": "category"}),
    "text/toutiao_small/train.csv": (5000, 3, "repeat an earlier row: 143", {"text": "text", "keywords": "text", "label": "category"}),
    "text/sst2/train.tsv": (6920, 2, "looks like data", {"column_1": "text", "column_2": "integer"}),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_table(shared: Path, ingest: Callable[..., Any], name: str):
    rows, width, word, types = TABLES[name]
    got = ingest(shared / name)
    assert (got.result.rows, len(got.result.columns)) == (rows, width)
    assert got.result.rejected_count == 0
    assert got.types() | types == got.types()
    assert not word or got.warned(word)


def test_missing_cells_are_counted(shared: Path, ingest: Callable[..., Any]):
    assert ingest(shared / "tabular/Telco-Customer-Churn.csv").column("TotalCharges")["missing"] == 11
    got = ingest(shared / "tabular/adult.data.csv.gz")
    assert sum(c["missing"] for c in got.profile["columns"]) == 4262
    assert got.table["column_2"][0] == "State-gov"


def test_folders_of_photographs(shared: Path, ingest: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory):
    archive = tmp_path_factory.mktemp("zip") / "hymenoptera.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted((shared / "images").glob("hymenoptera_data/*/*/*.jp*g")):
            packed.write(path, path.relative_to(shared / "images").as_posix())
    got = ingest(archive)
    counts = got.table.group_by("split", "label").len().sort("split", "label").rows()
    assert counts == [
        ("train", "ants", 82),
        ("train", "bees", 68),
        ("validation", "ants", 36),
        ("validation", "bees", 45),
    ]


@pytest.mark.slow
def test_fashion_mnist(shared: Path, ingest: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory):
    archive = tmp_path_factory.mktemp("zip") / "fashion.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted((shared / "images" / "fashion-mnist").iterdir()):
            packed.write(path, path.name)
    got = ingest(archive)
    assert got.result.rows == 70_000
    assert got.table.group_by("split").len().sort("split").rows() == [("test", 10_000), ("train", 60_000)]
    assert [c["count"] for c in got.column("label")["top"]] == [7000] * 10
    assert Path(got.folder / "output" / "data.parquet").stat().st_size < 60_000_000
