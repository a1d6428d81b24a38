"""What variants are judged by: whole groups, the rows that decided before, and answers that are understood."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from skl2onnx import to_onnx
from sklearn.linear_model import LogisticRegression

from app.core.errors import InvalidData
from app.core.signature import Signature, Tensor
from app.specs.compression import CompressBudget
from app.specs.jobs import CompressSpec
from tests.unit.learning.test_compress_search import compress_job, short_measurements  # noqa: F401 - fixtures
from tests.unit.learning.test_compress_steps import two_layers
from tests.unit.learning.test_foreign_tables import imported
from workers.compression.material import Material
from workers.compression.recipes import Maker
from workers.compression.variants import Compressor
from workers.evaluation.judge import Judge
from workers.evaluation.loss import worst_loss
from workers.jobs import compress, measure, train
from workers.jobs.judged_rows import judged_rows
from workers.jobs.judging import Version
from workers.learning import Array, Rule

MakeJob = Callable[..., Any]
FEW_TREES: dict[str, Any] = {"family": "gbdt", "params": {"n_estimators": 10}, "features": {"drop": ["amount"]}}


def lost(groups: Array | None, share: float = 0.05, rows: int = 1000, people: int = 100) -> tuple[float, float]:
    """What is measured, and the doubt, where the same is answered to all rows of a person."""
    y = np.random.default_rng(1).integers(0, 2, rows)
    full = np.eye(2)[y] * 0.8 + 0.1
    other, wrong = full.copy(), np.arange(rows) % people < share * people
    other[wrong] = other[wrong][:, ::-1]
    loss = worst_loss(Judge("classification", {}, y, Rule(), 1, groups=groups), "accuracy", full, other, budget=1.0)
    return loss.measured, loss.at_most - loss.measured


def test_rows_of_a_group_are_in_doubt_together():
    """A person with ten rows says as much as one row does."""
    measured, doubt = lost(np.arange(1000) % 100 + 7)
    assert (measured, doubt) == (pytest.approx(0.05), pytest.approx(1.729 * (0.05 * 0.95 / 100) ** 0.5, rel=0.3))
    assert doubt > 2 * lost(None)[1]
    assert lost(np.zeros(1000, np.int64)) == lost(None)  # of a single group nothing can be left out


def test_a_version_that_was_divided_by_groups_is_judged_by_groups(make_job: MakeJob, mixed: pl.DataFrame):
    """In a later job too; and those that decide over a model of all rows are not those that are reported."""
    frame = mixed.with_columns(who=pl.Series([f"p{at % 150}" for at in range(len(mixed))]))
    trained = make_job(frame, split={"group": "who", "test": 0.4}, **FEW_TREES)
    train.run(trained)
    job = make_job(frame, name="later", kind="compress")
    job.spec = {"kind": "compress", "model": "m", "version": 1}
    (job.input / "model").symlink_to(trained.output)
    version = Version(job.input / "model")
    prepared, judge, main = judged_rows(job, CompressSpec.model_validate(job.spec), version, b"")
    assert prepared.closer.groups is not None
    assert len(set(zip(prepared.closer.groups.tolist(), frame["who"], strict=True))) == 150
    made = [
        Compressor(version.base(), prepared, judge, main, CompressBudget(), origin=origin)
        for origin in (version.origin, version.origin and replace(version.origin, family="auto"))
    ]
    assert [one._decider.groups.tolist() for one in made[:1]] == [
        prepared.closer.groups[prepared.split.validation].tolist()
    ]
    deciding, reported = (set(half.groups.tolist()) for half in (made[1]._decider, made[1].judge))
    assert deciding
    assert reported
    assert not deciding & reported


def test_another_budget_reports_no_rows_that_decided(make_job: MakeJob, mixed: pl.DataFrame):
    """Half of the test rows decide over a model of all others: which half is said by the seed it was made with."""
    trained = make_job(mixed, **FEW_TREES)
    train.run(trained)
    card = json.loads((trained.output / "card.json").read_text())
    (trained.output / "card.json").write_text(json.dumps(card | {"family": "auto"}))
    (trained.output / "variants" / "same").mkdir(parents=True)
    shutil.copy(trained.output / "model.onnx", trained.output / "variants" / "same" / "model.onnx")
    found = []
    for at, budget in enumerate([None, {"max_metric_drop": 0.5, "seed": 5}]):
        job = make_job(mixed, name=f"measure-{at}", kind="measure")
        job.spec = {"kind": "measure", "model": "m", "version": 1, "budgets": {"same": {"seed": 1}}}
        job.spec |= {} if budget is None else {"budget": budget}
        (job.input / "model").symlink_to(trained.output)
        found.append(measure.run(job)["variants"][1]["metrics"])
    assert found[0] == found[1]


def test_an_imported_model_that_is_misread_has_no_variants(make_job: MakeJob, cancer: pl.DataFrame):
    """By classes in another order it seems better to answer anything else."""
    names = [name for name in cancer.columns if name != "target"]
    x, y = cancer.select(names).to_numpy().astype(np.float32), cancer["target"].to_numpy()
    model = to_onnx(LogisticRegression(max_iter=5000).fit(x, y), x[:1], options={"zipmap": False})
    label, probabilities = model.graph.output
    outputs = (Tensor(label.name, "BYTES", (-1,)), Tensor(probabilities.name, "FP32", (-1, 2)))
    signature = Signature("inference", (Tensor("X", "FP32", (-1, 30)),), outputs, ())
    mapping = {"task": "classification", "target": "target", "inputs": {"X": {"columns": names}}}
    job = imported(make_job, cancer, model, signature, mapping | {"classes": ["malignant", "benign"]})
    job.spec |= {"budget": {}, "recipes": [[{"step": "simplify"}]]}
    with pytest.raises(InvalidData, match=r"worse than one answer for all rows .*; correct classes") as caught:
        compress.run(job)
    assert caught.value.errors[0].loc == ("mapping",)
    (job.input / "model" / "variants" / "same").mkdir(parents=True)
    shutil.copy(job.input / "model" / "model.onnx", job.input / "model" / "variants" / "same" / "model.onnx")
    measuring = {"kind": "measure", "model": "m", "version": 1, "dataset": "d@1", "budgets": {}}
    job.spec = measuring | {"mapping": job.spec["mapping"]}
    with pytest.raises(InvalidData, match="worse than one answer"):
        measure.run(job)
    job.spec = measuring | {"mapping": mapping | {"classes": ["benign", "malignant"]}}
    assert measure.run(job)["metrics"]["accuracy"] > 0.9


def test_a_model_that_looks_for_rare_classes_is_no_misread_one(make_job: MakeJob):
    """It is right less often than one answer for all rows."""
    rng = np.random.default_rng(0)
    y = rng.choice(3, 900, p=[0.9, 0.05, 0.05])
    x = (rng.normal(size=(900, 2)) + 0.5 * np.asarray([[0, 0], [3, 0], [0, 3]])[y]).astype(np.float32)
    estimator = LogisticRegression(class_weight="balanced").fit(x, y)
    assert estimator.score(x, y) < 0.8
    model = to_onnx(estimator, x[:1], options={"zipmap": False})
    label, probabilities = model.graph.output
    outputs = (Tensor(label.name, "INT64", (-1,)), Tensor(probabilities.name, "FP32", (-1, 3)))
    signature = Signature("inference", (Tensor("X", "FP32", (-1, 2)),), outputs, ())
    mapping = {"task": "classification", "target": "target", "inputs": {"X": {"columns": ["a", "b"]}}}
    frame = pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "target": y})
    job = imported(make_job, frame, model, signature, mapping | {"output": probabilities.name})
    job.spec |= {"budget": {}, "recipes": [[{"step": "simplify"}]]}
    assert len(compress.run(job)["compression"]["candidates"]) == 1


@pytest.mark.parametrize(
    ("step", "told"),
    [
        ({"step": "prune", "keep": 0.5}, "only of cnn, convnext, mobilenet, resnet trained here"),
        ({"step": "drop_layers", "keep": 1}, "only of transformer, vit trained here"),
        ({"step": "cheapen", "energy": 0.5}, "only of cnn, convnext, mobilenet, resnet, transformer, vit trained"),
        ({"step": "learn_rounding", "operators": ["Gemm"]}, "only of cnn, convnext"),
        ({"step": "student", "of": "networks", "size": "slim"}, "no slim network of the family gbdt"),
        ({"step": "student", "of": "pictures", "size": "small"}, "only of an imported model of pictures"),
        ({"step": "quantize", "method": "static", "operators": ["Conv"]}, "no node of these types is in it"),
        ({"step": "quantize", "method": "dynamic", "operators": ["Conv"]}, "no node of these types is in it"),
    ],
)
def test_a_step_of_other_models_says_of_which(
    compress_job: Callable[..., Any],  # noqa: F811 - the fixture
    step: dict[str, Any],
    told: str,
):
    job = compress_job(max_metric_drop=0.5)
    job.spec["recipes"] = [[step]]
    [found] = compress.run(job)["compression"]["candidates"]
    assert told in found["reason"]


@pytest.mark.parametrize("step", [{"step": "first_trees", "share": 0.5}, {"step": "merge_leaves", "tolerance": 0.1}])
def test_trees_of_an_unknown_order_stay(step: dict[str, Any], tmp_path: Path):
    model, rows = two_layers(rank=60)
    judge = Judge("regression", rows, np.zeros(len(rows["x"])), Rule(), 1)
    maker = Maker(Material(model.SerializeToString(), None, judge, 0, tmp_path))  # type: ignore[arg-type] # not read
    with pytest.raises(ValueError, match="only of trees that were grown here"):
        maker.make([step])


def test_files_of_a_moment_go_with_the_folder_of_the_job(
    make_job: MakeJob, mixed: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A process that is killed leaves no rows and no graphs behind that nobody removes."""
    trained = make_job(mixed, family="mlp", features={"drop": ["amount"]}, training={"epochs": 1})
    train.run(trained)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))  # it fails whoever makes a file there
    static = {"step": "quantize", "method": "static", "operators": ["MatMul", "Gemm"], "float_between": True}
    dynamic = {"step": "quantize", "method": "dynamic", "operators": ["MatMul", "Gemm"]}
    for kind, run, more in (
        ("compress", compress.run, {"budget": {"max_metric_drop": 0.5}, "recipes": [[static], [dynamic]]}),
        ("measure", measure.run, {"budgets": {}}),
    ):
        job = make_job(mixed, name=kind, kind=kind)
        job.spec = {"kind": kind, "model": "m", "version": 1, **more}
        (job.input / "model").symlink_to(trained.output)
        result = run(job)
        assert [one["reason"] for one in result["variants"] if one["reason"]] == []
        shutil.copytree(job.output, trained.output, dirs_exist_ok=True)
    assert len(result["variants"]) > 1
    assert {path.name for path in (tmp_path / "compress").iterdir()} >= {"input", "output"}
    assert list((tmp_path / "compress").glob("tmp*")) == []
