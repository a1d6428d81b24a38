"""Every recipe of networks over pictures on real ones: two jobs make the same file, and clients get its numbers."""

from pathlib import Path

import pytest

from tests.support.real_versions import RealVersion, first_pictures, imported, ingested, trained
from tests.support.served_variants import Bench, check_elsewhere
from workers.compression.recipes import Recipe

CLASSIFIER_IN_FLOAT = ["Conv", "Relu", "MaxPool"]
EVERYTHING = ["Conv", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Add", "Concat", "MatMul", "Gemm"]
CONVOLUTIONS = {
    "step": "quantize", "method": "static", "operators": CLASSIFIER_IN_FLOAT, "activations": "uint8",
    "calibration": "min-max",
}  # fmt: skip
STATIC = {**CONVOLUTIONS, "operators": EVERYTHING}
PRUNED = {"step": "prune", "keep": 0.5, "importance": "taylor"}
ROUNDED = {"step": "learn_rounding", "operators": CLASSIFIER_IN_FLOAT}
RECIPES: dict[str, Recipe] = {
    "convolutions": [CONVOLUTIONS],
    "static": [STATIC],
    "static, int8": [{**STATIC, "activations": "int8"}],
    "static, entropy": [{**STATIC, "calibration": "entropy"}],
    "static, percentile": [{**STATIC, "calibration": "percentile"}],
    "half weights": [{"step": "half_weights"}],
    "byte weights": [{"step": "byte_weights"}],
    "convolutions, byte weights": [CONVOLUTIONS, {"step": "byte_weights"}],
}
TAUGHT: dict[str, Recipe] = {
    "student": [{"step": "student", "of": "networks", "size": "half"}],
    "pruned": [PRUNED],
    "pruned by magnitude": [{**PRUNED, "importance": "magnitude"}],
    "pruned, taught to be rounded": [PRUNED, ROUNDED, CONVOLUTIONS],
    "taught to be rounded": [ROUNDED, CONVOLUTIONS],
}
QUICK = ("student", "pruned, taught to be rounded")  # the others are parts of these, or like them


@pytest.fixture(scope="module")
def pictures(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fashion-MNIST's first 1,200."""
    folder = tmp_path_factory.mktemp("real")
    upload = first_pictures(shared_data / "images" / "fashion-mnist", 1200, folder / "fashion.zip")
    return ingested(upload, folder / "data")


@pytest.fixture(scope="module")
def network(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("real")
    training = {"epochs": 2, "batch_size": 64, "optimizer": {"lr": 0.005}}
    params = {"channels": [16, 32]}
    version = trained(pictures, folder / "version", target="label", family="cnn", params=params, training=training)
    return Bench.of(RealVersion(version, pictures), folder)


@pytest.fixture(scope="module")
def foreign(network: Bench, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The same network's file, of which an import knows nothing but its tensors."""
    folder = tmp_path_factory.mktemp("real")
    version = imported(network.version.folder / "model.onnx", folder / "version")
    mapping = {"task": "classification", "target": "label", "classes": [str(k) for k in range(10)]}
    return Bench.of(RealVersion(version, pictures, mapping), folder)


@pytest.mark.parametrize("name", RECIPES)
def test_a_network(network: Bench, name: str, tmp_path: Path):
    network.check(RECIPES[name], network.makers(tmp_path))


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TAUGHT]
)
def test_what_is_taught(network: Bench, name: str, tmp_path: Path):
    network.check(TAUGHT[name], network.makers(tmp_path))
    assert not list(tmp_path.rglob("*.ckpt"))  # nothing of a training is left


def test_a_student_of_an_imported_network(foreign: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("workers.compression.foreign_pictures._STEPS", 1)
    monkeypatch.setattr("workers.compression.foreign_pictures._EPOCHS", (1, 1))
    foreign.check([{"step": "student", "of": "pictures", "size": "small"}], foreign.makers(tmp_path))


def test_an_imported_network_is_simplified(foreign: Bench, tmp_path: Path):
    foreign.check([{"step": "simplify"}, STATIC], foreign.makers(tmp_path))


def test_two_jobs_keep_the_same_variant(network: Bench, tmp_path: Path):
    network.check_jobs(tmp_path, max_metric_drop=1.0)


@pytest.mark.slow
def test_another_process_makes_the_same_files(network: Bench, tmp_path: Path):
    recipes = [*RECIPES.values(), *TAUGHT.values()]
    check_elsewhere(network.version, recipes, tmp_path)
