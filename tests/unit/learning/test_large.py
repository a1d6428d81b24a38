"""Tables that would not fit the job's memory: rows are held in part, and training rows are streamed."""

import json
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
import polars as pl
import pytest

from app.core.errors import InvalidInput
from app.specs.jobs import TrainSpec
from workers.context import FitContext, Stopped
from workers.data.prepare import Prepared, prepare
from workers.families.encoding import DenseEncoder
from workers.families.gbdt import Gbdt
from workers.families.network import StreamedRows
from workers.jobs import compress, evaluate, train
from workers.training.batches import Batches

MakeJob = Callable[..., Any]
ROWS, NUMBERS = 60_000, 140
FEW = {"drop": [f"n{at}" for at in range(10, NUMBERS)]}  # the table stays large, the trainings get small
GBDT = {
    "family": "gbdt",
    "features": FEW,
    "params": {"n_estimators": 5},
    "training": {"early_stopping": None},
    "limits": {"threads": 2},
}
MLP = {
    "family": "mlp", "features": FEW, "params": {"hidden": [16]}, "limits": {"threads": 1},
    "training": {"epochs": 2, "batch_size": 1000, "checkpoint_every_s": 0, "optimizer": {"lr": 0.01}},
}  # fmt: skip


@pytest.fixture(scope="module")
def wide() -> pl.DataFrame:
    """Numbers and a category, of which some make the answer; row 11, which no part holds, misses `n3`."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((ROWS, NUMBERS), dtype=np.float32).astype(np.float64)
    kind = rng.integers(0, 3, ROWS)
    yes = x[:, 0] + x[:, 1] + kind - 1 + rng.normal(0, 0.5, ROWS) > 0
    frame = pl.DataFrame(x, schema=[f"n{at}" for at in range(NUMBERS)])
    return frame.with_columns(
        pl.when(pl.int_range(pl.len()) == 11).then(None).otherwise(pl.col("n3")).alias("n3"),
        age=pl.Series(rng.integers(0, 9, ROWS)),
        kind=pl.Series(np.asarray(["low", "mid", "high"])[kind]),
        target=pl.Series(np.where(yes, "yes", "no")),
    )


@pytest.fixture
def large(make_job: MakeJob, wide: pl.DataFrame) -> MakeJob:
    """A job over the table in row groups of 7,000, with the least memory that a job may have."""

    def make(memory_mb: int = 256, **spec: Any) -> Any:
        job = make_job(wide, resources={"memory_mb": memory_mb}, **spec)
        path = job.input / "dataset" / "data.parquet"
        pl.read_parquet(path).write_parquet(path, row_group_size=7000)
        return job

    return make


def _prepared(job: Any) -> Prepared:
    return prepare(job, TrainSpec.model_validate({k: v for k, v in job.spec.items() if k != "limits"}).check_family())


def test_every_row_is_in_a_part_and_some_are_held(large: MakeJob, wide: pl.DataFrame):
    prepared = _prepared(large(family="gbdt"))
    whole, held = prepared.rows, prepared.split.sizes()
    assert whole == {"train": 42_000, "validation": 6_000, "test": 12_000}
    assert all(1000 <= held[part] < whole[part] for part in whole)
    assert prepared.inputs["numeric"].shape == (sum(held.values()), NUMBERS + 1)
    at = prepared.row_ids[prepared.split.test[7]]
    row, inputs = wide.row(int(at), named=True), prepared.inputs
    assert inputs["numeric"][prepared.split.test[7], 1] == np.float32(row["n1"])
    assert inputs["categorical"][prepared.split.test[7], 0] == row["kind"]
    assert [c.name for c in prepared.signature.columns if c.nullable] == ["n3"]
    assert 11 not in prepared.row_ids


def test_each_training_row_is_read_once_an_epoch_in_an_order_of_its_own(large: MakeJob, wide: pl.DataFrame):
    job = large(family="mlp", target="n0", task="regression")
    prepared = _prepared(job)
    data = prepared.learning(TrainSpec.model_validate(job.spec), 1, "cpu")
    assert data.streamed is not None
    batches = Batches(StreamedRows(data.streamed, DenseEncoder.fit(data)), 999, seed=3)
    epochs = []
    for epoch in (0, 0, 1):
        batches.epoch = lambda epoch=epoch: epoch
        seen = [batch[1].numpy() for batch in batches]
        assert [len(y) for y in seen] == [999] * 42 + [42]
        epochs.append(data.standard.restore(np.concatenate(seen)))
    assert epochs[0].tolist() == epochs[1].tolist() != epochs[2].tolist()
    assert prepared.large is not None
    there = np.sort(wide["n0"].to_numpy()[prepared.large.split.train])
    for found in epochs:
        assert np.abs(np.sort(found) - there).max() < 1e-5


def test_trees_are_those_that_memory_would_have_grown(large: MakeJob):
    """But for what a category is worth, which the rows in memory say."""
    answers = []
    for memory_mb in (256, 4000):
        job = large(memory_mb, **GBDT, name=f"with-{memory_mb}")
        result = train.run(job)
        assert result["metrics"]["roc_auc"] > 0.85
        card = json.loads((job.output / "card.json").read_text())
        assert card["split"]["rows"]["train"] == 42_000
        assert any("resources.memory_mb" in warning for warning in card["warnings"]) == (memory_mb == 256)
        saved = pl.read_parquet(job.output / "split.parquet")
        assert (len(saved), saved["__row_id"].n_unique()) == (ROWS, ROWS)
        session = ort.InferenceSession(job.output / "model.onnx", providers=["CPUExecutionProvider"])
        rng = np.random.default_rng(0)
        rows = {
            "numeric": rng.standard_normal((500, 11), dtype=np.float32),
            "categorical": rng.choice(["low", "mid", "high"], (500, 1)).astype(object),
        }
        answers.append(session.run(None, rows)[0])
    assert np.abs(answers[0] - answers[1]).max() < 0.02
    assert (answers[0].argmax(axis=1) == answers[1].argmax(axis=1)).mean() > 0.97


def test_pairs_of_numbers_are_found_among_the_rows_in_memory(large: MakeJob):
    """`n0` and `n1` make a slanted border, which five trees cannot draw otherwise."""
    scores = [
        train.run(large(**GBDT | {"params": {"n_estimators": 5, "pairs": pairs}}, name=f"pairs-{pairs}"))["metrics"]
        for pairs in (0, 1)
    ]
    assert scores[1]["roc_auc"] > scores[0]["roc_auc"] + 0.005


def test_trees_are_resumed(large: MakeJob):
    """What the trees of the first attempt say of streamed rows is what the next one starts from."""
    fixed = {"n_estimators": 4, "subsample": 1.0, "colsample": 1.0}  # samples are drawn anew by each attempt
    spec = {"params": fixed, "training": {"early_stopping": None, "checkpoint_every_s": 0}, "target": "kind"}
    job = large(**GBDT | spec)  # of three classes
    checked = TrainSpec.model_validate({k: v for k, v in job.spec.items() if k != "limits"}).check_family()
    data = prepare(job, checked).learning(checked, 1, "cpu")
    assert data.streamed is not None
    family = Gbdt(checked.params)
    straight = family.fit(data, FitContext(job, 1, 2, "straight"))
    job.stop.set()
    while True:  # every attempt is stopped after its first round
        try:
            resumed = family.fit(data, job)
            break
        except Stopped:
            pass
    told = [event["message"] for event in job.seen if event["event"] == "log" and "resumed" in event["message"]]
    assert told == [f"resumed from round {done}" for done in range(1, 5)]
    rows = data.validation.inputs
    assert np.abs(straight.predict(rows) - resumed.predict(rows)).max() < 1e-9


def test_rows_go_through_the_recipe(large: MakeJob):
    steps = [{"step": "scale", "method": "standard"}, {"step": "one_hot", "columns": ["kind"]}]
    job = large(**GBDT | {"features": {**FEW, "steps": steps}})
    assert train.run(job)["metrics"]["roc_auc"] > 0.85


def test_a_network_resumes_to_the_very_same_weights_and_is_compressed(large: MakeJob):
    straight = large(**MLP, name="straight")
    assert train.run(straight)["metrics"]["roc_auc"] > 0.9
    broken = large(**MLP, name="broken")
    emit = type(broken).checkpointed

    def stop(job: Any) -> None:
        emit(job)
        job.stop.set()

    broken.__class__ = type("Stopping", (type(broken),), {"checkpointed": stop})
    with pytest.raises(Stopped):
        train.run(broken)
    again = large(**MLP, name="again")
    shutil.copytree(broken.checkpoint, again.checkpoint)
    train.run(again)
    assert (again.output / "model.onnx").read_bytes() == (straight.output / "model.onnx").read_bytes()

    later = large(name="later", kind="compress")
    later.spec = {"kind": "compress", "model": "m", "version": 1, "resources": {"memory_mb": 256}}
    shutil.copytree(straight.output, later.input / "model")
    (variant,) = compress.run(later)["variants"]
    assert variant["name"] == "int8"
    assert variant["metrics"]["roc_auc"] > 0.9


@pytest.mark.parametrize(
    ("spec", "where"),
    [
        ({"evaluation": {"folds": 3}}, ("evaluation", "folds")),
        ({"evaluation": {"learning_curve": True}}, ("evaluation", "learning_curve")),
        ({"clean": [{"step": "drop_outliers"}]}, ("clean", 0, "step")),
    ],
)
def test_what_needs_all_rows_in_memory_is_refused(large: MakeJob, spec: dict[str, Any], where: tuple[str, ...]):
    with pytest.raises(InvalidInput, match="raise ") as caught:
        train.run(large(**GBDT | spec))
    assert caught.value.errors[0].loc == where


def test_rows_are_cleaned_as_in_memory(large: MakeJob, wide: pl.DataFrame):
    clean = [
        {"step": "drop_missing", "columns": ["n3"]}, {"step": "filter", "where": "kind <> 'low'"},
        {"step": "drop_duplicates"},
    ]  # fmt: skip
    features = {"drop": [f"n{at}" for at in range(NUMBERS)]}
    kinds = wide.filter(pl.col("kind") != "low").select("age", "kind", "target").n_unique()
    low = int((wide["kind"] == "low").sum())
    counts = []
    for memory_mb in (256, 4000):
        prepared = _prepared(large(memory_mb, family="gbdt", clean=clean, features=features, name=f"m{memory_mb}"))
        counts.append((prepared.notes.counts, prepared.rows))
    assert counts[0] == counts[1]
    of_row_11 = int(wide["kind"][11] != "low")
    left = ROWS - low - of_row_11
    assert counts[0][0]["drop_duplicates"] == left - kinds
    assert counts[0][0]["filter"] == low - 1 + of_row_11


@pytest.mark.parametrize("split", [{"group": "age"}, {"time": "n1"}])
def test_rows_in_memory_are_left_out_as_the_whole_table_is_divided(large: MakeJob, split: dict[str, str]):
    job = large(family="gbdt", split=split)
    prepared = _prepared(job)
    data = prepared.learning(TrainSpec.model_validate({k: v for k, v in job.spec.items() if k != "limits"}), 1, "cpu")
    assert data.folds is not None
    folds = data.folds(3)
    if "group" in split:
        rows = np.concatenate([prepared.split.train, prepared.split.validation])
        assert prepared.closer.groups is not None
        ages = prepared.closer.groups[rows]
        assert all(len(np.unique(folds[ages == age])) == 1 for age in np.unique(ages))
        assert np.unique(folds).tolist() == [0, 1, 2]
    else:
        assert np.array_equal(folds, np.repeat([-1, 0], [len(data.train), len(data.validation)]))


@pytest.mark.slow
def test_auto_is_judged_by_rows_that_its_models_left_out(large: MakeJob):
    """Its members learn from the rows in memory: a stream would hand them the rows that judge them."""
    params = {"families": ["gbdt"], "folds": 2, "time_limit_s": 120}
    job = large(family="auto", params=params, features=FEW)
    tested = train.run(job)["metrics"]["roc_auc"]
    tried = json.loads((job.output / "card.json").read_text())["fit"]["tried"]
    assert all(line["roc_auc"] < tested + 0.02 for line in tried)


def test_classes_weigh_as_they_are_in_the_whole_table(large: MakeJob):
    job = large(family="gbdt", training={"class_weight": "balanced"})
    prepared = _prepared(job)
    data = prepared.learning(TrainSpec.model_validate(job.spec), 1, "cpu")
    assert data.streamed is not None
    assert data.class_weights is not None
    counts = np.bincount(data.streamed.y)
    assert counts[0] * data.class_weights[0] == pytest.approx(counts[1] * data.class_weights[1])
    assert data.metric == "roc_auc"


def test_row_numbers_are_left_out(large: MakeJob):
    job = large(family="gbdt")
    folder = job.input / "dataset"
    numbered = pl.read_parquet(folder / "data.parquet").with_columns(pl.int_range(pl.len()).alias("number"))
    numbered.write_parquet(folder / "data.parquet", row_group_size=7000)
    profile = json.loads((folder / "profile.json").read_text())
    entry = {"name": "number", "type": "integer", "missing": 0, "unique": ROWS - 900, "min": 0, "max": ROWS - 1}
    profile["columns"].append(entry)
    (folder / "profile.json").write_text(json.dumps(profile))
    prepared = _prepared(job)
    assert "number" not in [column.name for column in prepared.signature.columns]
    assert any("it numbers the rows" in warning for warning in prepared.notes.warnings)


def test_a_large_data_set_judges_by_some_of_its_rows(large: MakeJob):
    job = large(**GBDT)
    result = train.run(job)
    later = large(name="later", kind="evaluate")
    later.spec = {"kind": "evaluate", "model": "m", "version": 1, "dataset": "d@1", "resources": {"memory_mb": 256}}
    shutil.copytree(job.output, later.input / "model")
    report = evaluate.run(later)
    assert report["part"] == "test"
    assert 500 < report["rows"]["judged"] < 12_000
    assert report["metrics"]["fp32"]["roc_auc"] == pytest.approx(result["metrics"]["roc_auc"], abs=0.03)


def _documents(make_job: MakeJob, characters: int, rows: int = 4000, **spec: Any) -> Any:
    """Documents of about so many characters, of which the first word makes the answer, and a number."""
    rng = np.random.default_rng(3)
    yes = rng.random(rows) < 0.5
    filler = " ".join(rng.choice(["sea", "tree", "road", "cloud"], characters // 5))
    texts = [f"{'good' if y else 'bad'} {number} {filler}" for number, y in enumerate(yes)]
    frame = pl.DataFrame({"text": texts, "n": rng.normal(size=rows), "target": np.where(yes, "yes", "no")})
    job = make_job(frame, resources={"memory_mb": 256}, **spec)
    path = job.input / "dataset" / "profile.json"
    profile = json.loads(path.read_text())
    profile["columns"][0] |= {"type": "text", "length": {"mean": float(np.mean([len(text) for text in texts]))}}
    path.write_text(json.dumps(profile))
    return job


@pytest.mark.parametrize("family", ["text_linear", "gbdt"])
def test_long_texts_are_held_in_part(make_job: MakeJob, family: str):
    """Whichever family reads the table: a column that is left out takes as much memory."""
    wide = {"features": {"types": {"text": "text"}}} if family == "text_linear" else {}
    prepared = _prepared(_documents(make_job, 9000, family=family, **wide))
    assert prepared.rows == {"train": 2800, "validation": 400, "test": 800}
    assert prepared.split.sizes() == {"train": 1000, "validation": 400, "test": 800}
    assert [column.name for column in prepared.signature.columns] == ["text" if family == "text_linear" else "n"]
    few = _prepared(_documents(make_job, 100, family=family, name="few", **wide))
    assert few.large is None


def test_a_model_of_texts_learns_from_the_rows_that_are_held(make_job: MakeJob):
    job = _documents(make_job, 9000, family="text_linear", params={"words": 1, "characters": 0}, limits={"threads": 1})
    assert train.run(job)["metrics"]["roc_auc"] == 1.0
    card = json.loads((job.output / "card.json").read_text())
    assert card["split"]["rows"]["train"] == 2800
    assert any("resources.memory_mb" in warning for warning in card["warnings"])


def test_texts_of_which_a_few_fill_the_memory_are_refused(make_job: MakeJob):
    with pytest.raises(InvalidInput) as refused:
        _prepared(_documents(make_job, 40_000, rows=600, family="text_linear"))
    assert refused.value.errors[0].loc == ("resources", "memory_mb")
    assert "600 rows are held at least, of 0.2 MB each; raise it to" in refused.value.errors[0].msg
