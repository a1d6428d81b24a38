"""Every recipe of tables on real rows: two jobs make the same file, and clients get what its numbers say."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.support.real_versions import RealVersion, first_lines, ingested, trained
from tests.support.served_variants import Bench, agree, by_hand, check_elsewhere, served
from workers.compression import mixed as mixed_precision
from workers.compression.candidate import Notebook
from workers.compression.measuring import Measuring
from workers.compression.mixed import RANKING_ROWS, ranked_layers
from workers.compression.recipes import Maker, Recipe
from workers.compression.search import Search
from workers.compression.space import Space
from workers.compression.teaching import NoTime
from workers.evaluation.loss import Loss
from workers.export.runtime import open_session, predict
from workers.jobs import compress
from workers.learning import Array, take

TREES = {"step": "student", "of": "trees", "size": "small"}
HALF, MERGED = {"step": "first_trees", "share": 0.5}, {"step": "merge_leaves", "tolerance": 0.1}
PRODUCTS: dict[str, Any] = {
    "step": "quantize", "method": "static", "operators": ["MatMul", "Gemm"], "activations": "uint8",
    "calibration": "min-max", "float_between": True,
}  # fmt: skip
LOW_RANK, BYTES = {"step": "low_rank", "energy": 0.75}, {"step": "byte_weights"}
OF_TREES: dict[str, Recipe] = {
    "first trees": [HALF],
    "merged leaves": [MERGED],
    "student": [TREES],
    "all of them": [TREES, HALF, MERGED],
}
OF_NETWORKS: dict[str, Recipe] = {
    "static": [PRODUCTS],
    "static, int8": [{**PRODUCTS, "activations": "int8"}],
    "static, entropy": [{**PRODUCTS, "calibration": "entropy"}],
    "static, percentile": [{**PRODUCTS, "calibration": "percentile"}],
    "8 bits": [{"step": "quantize", "method": "weights", "bits": 8}],
    "4 bits": [{"step": "quantize", "method": "weights", "bits": 4}],
    "low rank": [LOW_RANK],
    "half weights": [{"step": "half_weights"}],
    "byte weights": [BYTES],
    "student": [TREES],
    "low rank, static, byte weights": [LOW_RANK, PRODUCTS, BYTES],
}
Make = Callable[..., Bench]


@pytest.fixture(scope="module")
def make(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`make(file, lines, **spec)`: a version that learns from the first lines of a table."""

    def made(file: str, lines: int, **spec: Any) -> Bench:
        folder = tmp_path_factory.mktemp("real")
        data = ingested(first_lines(shared_data / "tabular" / file, lines, folder / "upload.csv"), folder / "data")
        return Bench.of(RealVersion(trained(data, folder / "version", **spec), data), folder)

    return made


@pytest.fixture(scope="module")
def telco(make: Make) -> Callable[..., Bench]:
    def made(family: str, **params: Any) -> Bench:
        spec = {"target": "Churn", "features": {"drop": ["customerID"]}}
        return make("Telco-Customer-Churn.csv", 3001, **spec, family=family, params=params)

    return made


@pytest.fixture(scope="module")
def boosted(telco: Make) -> Bench:
    return telco("gbdt", n_estimators=80)


@pytest.fixture(scope="module")
def forest(telco: Make) -> Bench:
    return telco("random_forest", n_estimators=60)


@pytest.fixture(scope="module")
def houses(make: Make) -> Bench:
    spec = {"task": "regression", "target": "median_house_value", "family": "gbdt", "params": {"n_estimators": 80}}
    return make("california_housing.csv", 2501, **spec)


@pytest.fixture(scope="module")
def network(make: Make) -> Bench:
    """Of rows without a header, over numbers some of which are very rare and very large."""
    training = {"epochs": 4, "optimizer": {"lr": 0.005}}
    return make("adult.data.csv.gz", 4000, target="column_15", family="mlp", training=training)


@pytest.mark.parametrize(
    ("version", "name"),
    [
        *(("boosted", name) for name in OF_TREES), ("forest", "first trees"), ("forest", "student"),
        ("houses", "first trees"), ("houses", "all of them"),
    ],
)  # fmt: skip
def test_trees(request: pytest.FixtureRequest, version: str, name: str, tmp_path: Path):
    bench: Bench = request.getfixturevalue(version)
    bench.check(OF_TREES[name], bench.makers(tmp_path))


@pytest.mark.parametrize("name", OF_NETWORKS)
def test_a_network(network: Bench, name: str, tmp_path: Path):
    network.check(OF_NETWORKS[name], network.makers(tmp_path))


def test_ranges_of_the_whole_batch_make_it_part_of_the_answer(network: Bench, tmp_path: Path):
    """Dynamic int8: a run of the rows that judged answers as the judge heard; in smaller runs answers differ a little.

    The rows of Adult hold a few very large numbers, which widen the range of all rows beside them.
    """
    recipe = [{"step": "quantize", "method": "dynamic", "operators": ["MatMul", "Gemm"]}]
    network.check_whole_batches(recipe, network.makers(tmp_path), 1000, metrics=0.01, answers=0.2)


def test_what_was_taught_is_kept_for_a_later_attempt(network: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe, material = [TREES, HALF], network.version.maker(tmp_path).material
    raw = Maker(material, taught=tmp_path / "taught").make(recipe)
    monkeypatch.setattr("workers.compression.recipes.boosted_student", None)
    again = Maker(material, taught=tmp_path / "taught")
    assert again.make(recipe) == raw
    again.forget()
    assert again.make(recipe[:1]) == next((tmp_path / "taught").iterdir()).read_bytes()


def test_trees_are_grown_within_the_time_that_is_left(network: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("workers.compression.students._GROWING_S", 0.0)
    with pytest.raises(NoTime, match="growing trees takes too much of the time"):
        Maker(network.version.maker(tmp_path).material, deadline=time.monotonic() - 1).make([TREES])


@pytest.mark.parametrize("recipe", [[TREES], [PRODUCTS]], ids=["student", "static"])
def test_another_seed_draws_other_rows(network: Bench, recipe: Recipe, tmp_path: Path):
    """And so makes another file, from which clients get what is said of that one."""
    raw = network.check(recipe, network.makers(tmp_path / "one", seed=1))
    assert raw != network.version.maker(tmp_path / "zero").make(recipe)


def layers_of(maker: Maker) -> list[str]:
    return maker.static([]).layers(PRODUCTS["operators"], float_between=True)


def fewest(measuring: Measuring) -> list[str]:
    """Of the layers, those first whose rounding alone changes answers most, one more at a time until it is enough."""
    maker, material = measuring.maker, measuring.maker.material
    layers, rows = layers_of(maker), take(material.calibration(), slice(0, RANKING_ROWS))

    def recipe(kept: Sequence[str]) -> Recipe:
        return [{**PRODUCTS, "keep_float": sorted(kept)}]

    def ask(raw: bytes) -> Array:
        return predict(open_session(raw, 1), rows, material.batch)

    ranked = ranked_layers(maker.make([]), lambda kept: maker.graph(recipe(kept)), layers, ask)
    beginnings = (ranked[:count] for count in range(1, len(ranked)))
    return sorted(next(some for some in beginnings if measuring.loss(maker.make(recipe(some))).within))


def in_float(raw: bytes, layers: Sequence[str]) -> set[str]:
    """Those of the layers that are there under their names and read no integers."""
    nodes = onnx.load_from_string(raw).graph.node
    integers = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    return {node.name for node in nodes if node.name in layers and not integers & set(node.input)}


def test_int8_that_loses_too_much_keeps_the_fewest_layers_in_float(
    network: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The budget is half of what int8 may lose. Nothing else is to be tried, and nothing is taught."""
    maker = Maker(replace(network.version.maker(tmp_path / "search").material, job=None))
    alone = network.measuring(maker).loss(maker.make([PRODUCTS]))
    assert alone.at_most > 0, "int8 loses nothing of this model"
    measuring = network.measuring(maker, alone.at_most / 2)
    space = Space({"precision": ("none",), "storage": ("none",)}, [], trees=False)
    book = tmp_path / "book", "here", "model"
    missed, mixed = Search(measuring, space, Notebook.open(*book), 600.0, [PRODUCTS]).run()
    assert missed.recipe == [PRODUCTS]
    assert [why.partition(" is worse by ")[0] for why in missed.stops] == [alone.metric]
    assert (mixed.failed, mixed.stops) == (None, [])
    kept = mixed.recipe[0]["keep_float"]
    assert mixed.recipe == [{**PRODUCTS, "keep_float": kept}]
    assert kept == fewest(measuring)
    raw = network.check(mixed.recipe, network.makers(tmp_path))
    assert mixed.sha256 == sha256(raw).hexdigest()
    assert Loss(**mixed.loss) == measuring.loss(raw)
    assert in_float(raw, layers_of(maker)) == set(kept)
    changes = Notebook.open(*book).changes
    assert [set(one) for one in changes.values()] == [set(layers_of(maker))]
    asked = []
    monkeypatch.setattr(mixed_precision, "open_session", lambda *given: asked.append(given) or open_session(*given))
    known = Notebook(None, "here", "model", changes=changes)  # a later attempt looks at no layer again
    assert [one.sha256 for one in Search(measuring, space, known, 600.0, [PRODUCTS]).run()[1:]] == [mixed.sha256]
    assert len(asked) == 1  # the full model
    monkeypatch.setattr(mixed_precision, "open_session", None)  # what goes wrong there is the end of that alone
    alone_again = Search(measuring, space, Notebook(None, "here", "model"), 600.0, [PRODUCTS]).run()
    assert [one.recipe for one in alone_again] == [missed.recipe]


@pytest.mark.parametrize("version", ["boosted", "houses", "network"])
def test_two_jobs_keep_the_same_variant(request: pytest.FixtureRequest, version: str, tmp_path: Path):
    bench: Bench = request.getfixturevalue(version)
    assert bench.check_jobs(tmp_path, max_metric_drop=1.0, seed=3)["recipe"]["seed"] == 3


@pytest.mark.slow
def test_what_a_search_keeps_is_made_again_from_its_recipe(boosted: Bench, tmp_path: Path):
    """How much is tried is a matter of time, but not what a recipe makes, nor what clients get from it."""
    job = boosted.version.job(tmp_path / "job", max_metric_drop=0.1, time_limit_s=5, objective="bytes", seed=2)
    result = compress.run(job)
    lines = {one["variant"]: one for one in result["compression"]["candidates"]}
    assert len(result["variants"]) > 1
    for at, variant in enumerate(result["variants"]):
        steps, seed = variant["recipe"]["steps"], variant["recipe"]["seed"]
        raw = boosted.check(steps, boosted.makers(tmp_path / f"{at}", seed))
        assert raw == (job.output / variant["path"]).read_bytes()
        found = served(boosted.version, raw, boosted.folder)
        made = by_hand(boosted.version, "test", found["test"])
        agree(made, {name: variant["metrics"][name] for name in made})
        boosted.check_loss(Loss(**lines[variant["name"]]["loss"]), found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "recipes"), [("boosted", OF_TREES), ("forest", OF_TREES), ("network", OF_NETWORKS)]
)
def test_another_process_makes_the_same_files(
    request: pytest.FixtureRequest, version: str, recipes: dict[str, Recipe], tmp_path: Path
):
    bench: Bench = request.getfixturevalue(version)
    check_elsewhere(bench.version, list(recipes.values()), tmp_path)
