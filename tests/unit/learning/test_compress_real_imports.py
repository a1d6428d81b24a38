"""Models of real rows that scikit-learn has fitted: two jobs make the same file, and clients get its numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
from skl2onnx import to_onnx
from sklearn.ensemble import RandomForestClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.support.real_versions import RealVersion, first_lines, imported, ingested
from tests.support.served_variants import Bench
from workers.compression.recipes import Recipe

OPSETS = {"": 21, "ai.onnx.ml": 3}
TREES = {"step": "student", "of": "trees", "size": "small"}
PRODUCTS = {
    "step": "quantize", "method": "static", "operators": ["MatMul", "Gemm"], "activations": "uint8",
    "calibration": "min-max", "float_between": True,
}  # fmt: skip
OF_NETWORKS: dict[str, Recipe] = {
    "student": [TREES],
    "static, percentile": [{**PRODUCTS, "calibration": "percentile"}],
    "4 bits": [{"step": "quantize", "method": "weights", "bits": 4}],
    "low rank, half weights": [{"step": "low_rank", "energy": 0.75}, {"step": "half_weights"}],
    "byte weights": [{"step": "byte_weights"}],
}


@pytest.fixture(scope="module")
def cards(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Credit cards, and whether they were paid: numbers alone."""
    folder = tmp_path_factory.mktemp("real")
    upload = first_lines(shared_data / "tabular" / "UCI_Credit_Card.csv.gz", 2501, folder / "cards.csv")
    return ingested(upload, folder / "data")


def bench(cards: Path, estimator: Any, folder: Path) -> Bench:
    """The estimator fitted to half of the rows, exported as its owner would, imported, and judged by all of them."""
    rows = pl.read_parquet(cards / "data.parquet")
    names = [name for name in rows.columns if name not in {"__row_id", "ID", "Default"}]
    half = rows.gather_every(2)
    numbers = half.select(names).to_numpy().astype(np.float32)
    fitted = estimator.fit(numbers, half["Default"].to_numpy())
    path = folder / "foreign.onnx"
    onnx.save(to_onnx(fitted, numbers[:1], options={"zipmap": False}, target_opset=OPSETS), path)
    mapping = {
        "task": "classification", "target": "Default", "inputs": {"X": {"columns": names}}, "output": "probabilities",
        "classes": ["0", "1"],
    }  # fmt: skip
    return Bench.of(RealVersion(imported(path, folder / "version"), cards, mapping), folder)


@pytest.fixture(scope="module")
def forest(cards: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return bench(cards, RandomForestClassifier(60, max_depth=10, random_state=0), tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="module")
def network(cards: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    estimator = make_pipeline(StandardScaler(), MLPClassifier((128, 64), tol=0.02, random_state=0))
    return bench(cards, estimator, tmp_path_factory.mktemp("real"))


def test_a_student_of_an_imported_forest(forest: Bench, tmp_path: Path):
    raw = forest.check([TREES], forest.makers(tmp_path))
    assert len(raw) < len(forest.version.model) / 2


@pytest.mark.parametrize("name", OF_NETWORKS)
def test_an_imported_network(network: Bench, name: str, tmp_path: Path):
    network.check(OF_NETWORKS[name], network.makers(tmp_path))


def test_two_jobs_keep_the_same_variant(network: Bench, tmp_path: Path):
    network.check_jobs(tmp_path, max_metric_drop=1.0)
