"""The family `auto`: one graph of many models, chosen by rows that each had not seen."""

import json
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest

from app.core.errors import InvalidSpec
from app.core.signature import Signature, Tensor
from app.specs.augment import AugmentSpec
from app.specs.auto_families import AUTO
from app.specs.jobs import TrainSpec
from app.specs.splits import SplitSpec
from workers.automl import auto, portfolio
from workers.automl.members import Pool
from workers.automl.portfolio import PLANS, Candidate, Loop
from workers.context import Stopped
from workers.data.prepare import prepare
from workers.families.linear import Linear
from workers.jobs import train
from workers.learning import LearningData, Part

MakeJob = Callable[..., Any]
FEW = {"folds": 2, "families": ["linear", "naive_bayes", "extra_trees"]}
SPEC: dict[str, Any] = {"family": "auto", "params": FEW, "features": {"drop": ["amount"]}}


def _fit(job: Any) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((job.output / "card.json").read_text())
    return card["fit"]


def test_the_ensemble_is_one_graph_and_says_why(make_job: MakeJob, mixed: pl.DataFrame):
    job = make_job(mixed, **SPEC)
    result = train.run(job)
    assert result["metrics"]["roc_auc"] > 0.79
    fit = _fit(job)
    assert {line["name"] for line in fit["tried"]} == {"linear", "naive_bayes", "extra_trees"}
    # Those that were chosen have learnt from all rows once more.
    assert all(line["models"] == (1 if line["weight"] else 2) for line in fit["tried"])
    assert all(0.6 < line["roc_auc"] < 0.95 for line in fit["tried"])
    assert fit["chosen"] in fit["combinations"]
    assert fit["given_up"] == {}
    assert "rows it was not fitted on" in fit["why"]
    used = [line for line in fit["tried"] if line["weight"]]
    model = onnx.load(job.output / "model.onnx")
    assert [value.name for value in model.graph.input] == ["numeric", "categorical"]
    assert [value.name for value in model.graph.output] == ["probabilities"]
    trees = sum(node.op_type == "TreeEnsembleRegressor" for node in model.graph.node)
    assert trees == sum(line["family"] == "extra_trees" for line in used)


def test_values_and_several_classes(make_job: MakeJob, diabetes: pl.DataFrame, wine: pl.DataFrame):
    params = {"folds": 2, "families": ["linear", "gbdt"]}
    job = make_job(diabetes, name="values", family="auto", task="regression", params=params)
    assert train.run(job)["metrics"]["r2"] > 0.3
    job = make_job(wine, name="classes", family="auto", params={"folds": 3, "families": ["linear", "naive_bayes"]})
    assert train.run(job)["metrics"]["accuracy"] > 0.9


def test_chosen_trees_learn_from_all_rows_with_the_rounds_of_the_folds(make_job: MakeJob, mixed: pl.DataFrame):
    job = make_job(mixed, **SPEC | {"params": {"folds": 3, "families": ["gbdt"], "members": 1}})
    train.run(job)
    fit = _fit(job)
    (used,) = [line for line in fit["tried"] if line["weight"]]
    assert used["models"] == 4
    nodes = [
        node for node in onnx.load(job.output / "model.onnx").graph.node if node.op_type == "TreeEnsembleRegressor"
    ]
    trees = [max(a.ints) + 1 for node in nodes for a in node.attribute if a.name == "nodes_treeids"]
    found = []
    for fold in range(3):
        with np.load(job.checkpoint / "auto" / f"{used['name']}-{fold}.npz") as file:
            found.append(int(file["rounds"]))
    assert trees == [round(1.1 * np.mean(found))] * 4
    assert len({node.SerializeToString() for node in nodes}) == 4  # each has a seed of its own


def test_a_row_is_answered_by_so_many_trees_at_most(
    make_job: MakeJob, mixed: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
):
    params = {"folds": 2, "families": ["gbdt"], "members": 1}
    job = make_job(mixed, **SPEC | {"params": params})
    monkeypatch.setattr(auto, "_MOST_TREES", 1)
    train.run(job)
    (used,) = [line for line in _fit(job)["tried"] if line["weight"]]
    assert used["models"] == 1


def test_it_goes_on_after_the_last_model_that_was_finished(
    make_job: MakeJob, mixed: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
):
    whole = make_job(mixed, name="whole", **SPEC)
    train.run(whole)
    stopped = make_job(mixed, name="stopped", **SPEC)
    trained = []
    fit = Linear.fit

    def stopping(self: Linear, data: LearningData, job: Any) -> Any:
        trained.append(job.name)
        if len(trained) == 2:
            stopped.stop.set()
            raise Stopped
        return fit(self, data, job)

    monkeypatch.setattr(Linear, "fit", stopping)
    with pytest.raises(Stopped):
        train.run(stopped)
    assert trained == ["linear-0", "linear-1"]
    again = make_job(mixed, name="again", **SPEC)
    shutil.copytree(stopped.checkpoint, again.checkpoint)
    train.run(again)
    assert trained[2:] == ["linear-1", "linear-all-rows-0"]
    assert (again.output / "model.onnx").read_bytes() == (whole.output / "model.onnx").read_bytes()


def test_the_time_limit_is_kept_and_told(make_job: MakeJob, mixed: pl.DataFrame, monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(auto.time, "monotonic", lambda: now[0])
    monkeypatch.setattr("workers.automl.members.time.monotonic", lambda: now[0])
    fit = Linear.fit

    def slow(self: Linear, data: LearningData, job: Any) -> Any:
        now[0] += 4
        return fit(self, data, job)

    monkeypatch.setattr(Linear, "fit", slow)
    params = {**FEW, "families": ["linear", "naive_bayes"], "time_limit_s": 12}
    job = make_job(mixed, name="short", **{**SPEC, "params": params})
    train.run(job)
    assert _fit(job)["folds"] == 1  # two folds of the first would have taken more than a quarter of the time
    assert [line["models"] for line in _fit(job)["tried"]] == [1, 1]
    now[0] = 0.0
    monkeypatch.setattr(auto._Search, "spent_s", 13.0)
    with pytest.raises(InvalidSpec, match="no model was finished in time; raise it") as caught:
        train.run(make_job(mixed, name="none", **{**SPEC, "params": params}))
    assert caught.value.errors[0].loc == ("params", "time_limit_s")


@pytest.mark.parametrize(
    ("names", "words"), [(["nope"], "'nope' is none of: extra_trees"), (["auto"], "'auto' is none of")]
)
def test_families_that_cannot_be_tried_are_named(names: list[str], words: str):
    with pytest.raises(InvalidSpec) as caught:
        AUTO.validate({"families": names})
    assert caught.value.errors[0].loc == ("params", "families")
    assert words in caught.value.errors[0].msg


def test_no_family_does_the_task(make_job: MakeJob, diabetes: pl.DataFrame):
    job = make_job(diabetes, family="auto", task="regression", params={"families": ["naive_bayes"]})
    with pytest.raises(InvalidSpec, match="none of these families does regression"):
        train.run(job)


@pytest.mark.parametrize("count", [2, 5])
def test_folds_are_of_one_size_and_alike_in_their_targets(count: int):
    y = np.asarray([0] * 97 + [1] * 41 + [2] * 3)
    inputs = {"numeric": np.arange(141, dtype=np.float32)[:, None]}
    data = LearningData(
        None, Part({"numeric": inputs["numeric"][:100]}, y[:100]), Part({"numeric": inputs["numeric"][100:]}, y[100:])
    )  # type: ignore[arg-type]  # folds need no signature
    pool = Pool.of("tabular", data, count)
    sizes = np.bincount(pool.folds, minlength=count)
    assert sizes.max() - sizes.min() <= 1
    for k in range(3):
        of_class = np.bincount(pool.folds[pool.y == k], minlength=count)
        assert of_class.max() - of_class.min() <= 2
    assert np.array_equal(pool.folds, Pool.of("tabular", data, count).folds)


def test_groups_are_left_out_whole_and_along_time_the_newest_rows_alone(make_job: MakeJob, mixed: pl.DataFrame):
    frame = mixed.with_columns(pl.Series("hotel", np.arange(1200) // 9 % 40), pl.Series("day", np.arange(1200)))
    spec = TrainSpec.model_validate(make_job(frame, **SPEC).spec | {"split": {"method": "group", "group": "hotel"}})
    prepared = prepare(make_job(frame, name="groups", **SPEC), spec)
    pool = Pool.of("tabular", prepared.learning(spec, 1, "cpu"), 4)
    rows = np.concatenate([prepared.split.train, prepared.split.validation])
    assert pool.count == 4
    hotels = frame["hotel"].to_numpy()[rows]
    assert all(len(np.unique(pool.folds[hotels == hotel])) == 1 for hotel in np.unique(hotels))
    assert np.bincount(pool.folds).min() > 150
    spec = spec.model_copy(update={"split": SplitSpec(method="time", time="day")})
    prepared = prepare(make_job(frame, name="time", **SPEC), spec)
    pool = Pool.of("tabular", prepared.learning(spec, 1, "cpu"), 4)
    assert pool.count == 1
    assert np.array_equal(pool.folds, np.repeat([-1, 0], [len(prepared.split.train), len(prepared.split.validation)]))


def test_it_chooses_by_the_newest_rows_where_time_divides(make_job: MakeJob, mixed: pl.DataFrame):
    frame = mixed.with_columns(pl.Series("day", np.arange(1200)))
    params = {"families": ["linear", "naive_bayes"], "time_limit_s": 60}
    job = make_job(frame, family="auto", params=params, split={"method": "time", "time": "day"},
                   features={"drop": ["amount", "day"]})  # fmt: skip
    train.run(job)
    fit = _fit(job)
    assert (fit["folds"], [line["models"] for line in fit["tried"]]) == (1, [1, 1])


def test_forests_are_as_large_as_memory_has_room_for(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch):
    """Of pure noise, whose leaves are as small as they may be. As many trees as for few rows would be 200,000 nodes."""
    monkeypatch.setattr(portfolio, "_FOREST_NODES", 30_000)
    rng = np.random.default_rng(4)
    frame = pl.DataFrame({"x": rng.normal(size=1500), "z": rng.normal(size=1500), "target": rng.normal(size=1500)})
    params = {"folds": 4, "families": ["random_forest"], "time_limit_s": 60}
    job = make_job(frame, family="auto", task="regression", params=params)
    train.run(job)
    nodes = [
        node for node in onnx.load(job.output / "model.onnx").graph.node if node.op_type == "TreeEnsembleRegressor"
    ]
    sizes = [len(a.ints) for node in nodes for a in node.attribute if a.name == "nodes_treeids"]
    assert len(sizes) == 1
    assert 10_000 < sizes[0] < 30_000


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks that learn for a few epochs."""
    cnn = Candidate("text_cnn", "text_cnn", {"width": 32, "filters": 16}, lr=0.01)
    linear = Candidate("text_linear", "text_linear", {"characters": 0, "regularization": 1.0}, relearns=True)
    texts = linear, cnn
    pictures = (Candidate("cnn", "cnn", {"channels": [8, 16]}, lr=0.02),)
    monkeypatch.setitem(PLANS, "text", (texts, Loop(32, 60, 4, 8)))
    monkeypatch.setitem(PLANS, "image", (pictures, Loop(32, 40, 4, 8, AugmentSpec(crop=1), 0.1)))


@pytest.mark.usefixtures("briefly")
def test_texts_become_one_graph_of_several_families(make_job: MakeJob):
    rng = np.random.default_rng(3)
    words = np.asarray([["good", "fine", "很好", "lovely"], ["bad", "awful", "很差", "dirty"]])
    y = rng.integers(0, 2, 240)
    texts = [
        " ".join(["stay", str(rng.integers(99)), *rng.choice(words[k if rng.random() < 0.85 else 1 - k], 2)]) for k in y
    ]
    frame = pl.DataFrame({"text": texts, "target": np.where(y, "bad", "good")})
    params = {"families": ["text_linear", "text_cnn"], "folds": 2, "time_limit_s": 600}
    job = make_job(frame, family="auto_text", params=params)
    result = train.run(job)
    fit = _fit(job)
    assert result["metrics"]["roc_auc"] > 0.85
    tried = {line["name"]: line for line in fit["tried"]}
    assert tried["text_linear"]["weight"] > 0
    # It needs no rows to stop by: one model of all rows takes the place of two of half of them.
    assert (tried["text_linear"]["models"], tried["text_cnn"]["models"]) == (1, 2)
    assert [value.name for value in onnx.load(job.output / "model.onnx").graph.input] == ["text"]


@pytest.mark.usefixtures("briefly")
def test_pictures_become_one_graph_of_several_networks(make_job: MakeJob, digits: pl.DataFrame):
    params = {"families": ["cnn"], "folds": 2, "time_limit_s": 600}
    job = make_job(digits.head(300), data="image", family="auto_image", target="label", params=params,
                   training={"augment": {"crop": 1}})  # fmt: skip
    result = train.run(job)
    assert result["metrics"]["accuracy"] > 0.7
    (tried,) = _fit(job)["tried"]
    assert (tried["name"], tried["models"]) == ("cnn", 2)
    assert [value.name for value in onnx.load(job.output / "model.onnx").graph.input] == ["image"]


def test_a_wrong_spec_is_not_taken_for_lack_of_time(make_job: MakeJob, mixed: pl.DataFrame):
    params = {"folds": 2, "families": ["mlp"]}
    job = make_job(mixed.head(200), **SPEC | {"params": params}, training={"precision": "fp16"})
    with pytest.raises(InvalidSpec, match="has no fp16") as caught:
        train.run(job)
    assert caught.value.errors[0].loc == ("training", "precision")


@pytest.mark.parametrize("again", [True, False])
def test_a_candidate_by_the_values_of_numbers_is_tried_where_numbers_come_again(*, again: bool):
    rng = np.random.default_rng(0)
    numbers = (rng.integers(0, 5, (400, 1)) if again else rng.normal(size=(400, 1))).astype(np.float32)
    part = Part({"numeric": numbers}, rng.integers(0, 2, 400))
    tensors, output = (Tensor("numeric", "FP32", (-1, 1)),), (Tensor("probabilities", "FP32", (-1, 2)),)
    data = LearningData(Signature("classification", tensors, output, (), ("no", "yes")), part, part)
    names = {candidate.name for candidate in portfolio.portfolio("tabular", data)}
    assert {"gbdt-narrow", "linear"} <= names
    assert {name for name in names if "values" in name} == ({"gbdt-values", "gbdt-values-gentle"} if again else set())


def test_variations_of_what_was_no_better_are_not_tried(
    make_job: MakeJob, mixed: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
):
    stump = {"n_estimators": 1, "max_depth": 1}
    tried = (
        Candidate("linear", "linear"), Candidate("stump", "extra_trees", stump),
        Candidate("stumps", "extra_trees", stump, like="stump", than="linear"),
        Candidate("same", "extra_trees", stump), Candidate("other", "extra_trees", stump, like="same", than="stump"),
        Candidate("linear-strong", "linear", like="linear", than="stump"),
    )  # fmt: skip
    monkeypatch.setitem(PLANS, "tabular", (tried, PLANS["tabular"][1]))
    job = make_job(mixed, **SPEC | {"params": {"folds": 2, "families": ["linear", "extra_trees"]}})
    train.run(job)
    fit = _fit(job)
    assert fit["given_up"] == {
        "stumps": "stump, which it is like, was no better than linear",
        "other": "same, which it is like, was no better than stump",
    }
    assert {line["name"] for line in fit["tried"]} == {"linear", "stump", "same", "linear-strong"}
