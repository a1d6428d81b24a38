"""Every recipe of networks over texts on real ones: two jobs make the same file, and clients get its numbers."""

from pathlib import Path

import pytest

from tests.support.real_versions import RealVersion, first_lines, ingested, trained
from tests.support.served_variants import Bench, check_elsewhere
from workers.compression.recipes import Recipe

PRODUCTS = {
    "step": "quantize", "method": "static", "operators": ["MatMul", "Gemm"], "activations": "uint8",
    "calibration": "min-max", "float_between": True,
}  # fmt: skip
DYNAMIC = {"step": "quantize", "method": "dynamic", "operators": ["MatMul", "Gemm", "Attention", "Gather"]}
FUSED, FAST = ({"step": "fuse", "fast_gelu": fast} for fast in (False, True))
SHORT = {"step": "drop_layers", "keep": 1, "table_rank": 8}
ROUNDED = {"step": "learn_rounding", "operators": ["MatMul", "Gemm"]}
RECIPES: dict[str, Recipe] = {
    "static, percentile": [{**PRODUCTS, "calibration": "percentile"}],
    "static, tables": [{**PRODUCTS, "operators": ["MatMul", "Gemm", "Gather"]}],
    "4 bits": [{"step": "quantize", "method": "weights", "bits": 4}],
    "low rank": [{"step": "low_rank", "energy": 0.75}],
    "byte weights": [{"step": "byte_weights"}],
    "fused": [FUSED],
    "fused, fast GELU": [FAST],
    "fused, fast GELU, static, byte weights": [FAST, PRODUCTS, {"step": "byte_weights"}],
}
TAUGHT: dict[str, Recipe] = {
    "student": [{"step": "student", "of": "networks", "size": "half"}],
    "without layers": [SHORT],
    "taught to be rounded": [ROUNDED, PRODUCTS],
    "without layers, taught to be rounded": [SHORT, ROUNDED, FUSED, PRODUCTS],
    "without layers, fused, static": [SHORT, FUSED, PRODUCTS],
}
QUICK = ("without layers, fused, static",)  # the others are parts of it, or done to pictures as well


@pytest.fixture(scope="module")
def encoder(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Of 500 news, which are few, so that it learns little: what it answers is as good as any other for this."""
    folder = tmp_path_factory.mktemp("real")
    upload = first_lines(shared_data / "text" / "ag_news_train5000.csv", 500, folder / "news.csv")
    data = ingested(upload, folder / "data")
    params = {"width": 32, "depth": 2, "heads": 2, "max_tokens": 32, "dropout": 0.1}
    training = {"epochs": 2, "batch_size": 32, "optimizer": {"lr": 0.005}}
    given = {"target": "column_2", "family": "transformer", "params": params, "training": training}
    return Bench.of(RealVersion(trained(data, folder / "version", **given), data), folder)


@pytest.mark.parametrize("name", RECIPES)
def test_an_encoder(encoder: Bench, name: str, tmp_path: Path):
    encoder.check(RECIPES[name], encoder.makers(tmp_path))


def test_ranges_of_the_whole_batch_make_it_part_of_the_answer(encoder: Bench, tmp_path: Path):
    """Dynamic int8: a run of the rows that judged answers as the judge heard, and smaller runs a little otherwise."""
    recipe = [DYNAMIC]
    encoder.check_whole_batches(recipe, encoder.makers(tmp_path), 600, metrics=0.02, answers=0.05)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TAUGHT]
)
def test_what_is_taught(encoder: Bench, name: str, tmp_path: Path):
    encoder.check(TAUGHT[name], encoder.makers(tmp_path))


@pytest.mark.slow
def test_two_jobs_keep_the_same_variant(encoder: Bench, tmp_path: Path):
    encoder.check_jobs(tmp_path, max_metric_drop=1.0)


@pytest.mark.slow
def test_another_process_makes_the_same_files(encoder: Bench, tmp_path: Path):
    recipes = [*RECIPES.values(), TAUGHT["without layers, taught to be rounded"], [DYNAMIC]]
    check_elsewhere(encoder.version, recipes, tmp_path)
