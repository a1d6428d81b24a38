"""A job that was stopped goes on where its checkpoint ends."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from workers.context import Stopped
from workers.jobs import train

MakeJob = Callable[..., Any]
SPEC: dict[str, Any] = {"features": {"drop": ["amount"]}}
FOREST: dict[str, Any] = {**SPEC, "family": "random_forest", "params": {"n_estimators": 20}, "limits": {"threads": 2}}


def _stop_at(job: Any, step: str) -> None:
    """Ask the job to stop once it tells of `step`."""
    emit = type(job).progress

    class Stopping(type(job)):  # type: ignore[misc]  # made from the fixture's class
        def progress(self, fraction: float, told: str, eta_s: float | None = None) -> None:
            emit(self, fraction, told, eta_s)
            if told.startswith(step):
                self.stop.set()

    job.__class__ = Stopping


def _resumed(job: Any) -> list[str]:
    return [e["message"] for e in job.seen if e["event"] == "log" and "resumed" in e["message"]]


def _stopped(make_job: MakeJob, frame: pl.DataFrame, name: str, step: str, **spec: Any) -> Path:
    job = make_job(frame, name=name, **spec)
    _stop_at(job, step)
    with pytest.raises(Stopped):
        train.run(job)
    assert [e for e in job.seen if e["event"] == "checkpoint"]
    assert not (job.output / "model.onnx").exists()
    assert not list(job.checkpoint.glob("*.part"))
    return job.checkpoint


def test_a_network_resumes_to_the_very_same_weights(make_job: MakeJob, mixed: pl.DataFrame):
    training = {"epochs": 6, "batch_size": 64, "checkpoint_every_s": 0}
    assert_same_when_resumed(make_job, mixed, family="mlp", training=training, **SPEC)


def test_a_network_behind_a_recipe_resumes_to_the_very_same_weights(make_job: MakeJob, mixed: pl.DataFrame):
    steps = [{"step": "impute", "flag": True}, {"step": "target_encode"}, {"step": "select", "k": 4}]
    training = {"epochs": 4, "batch_size": 64, "checkpoint_every_s": 0}
    features = {"drop": ["amount"], "steps": steps}
    assert_same_when_resumed(make_job, mixed, family="mlp", training=training, features=features)


def test_a_network_of_pictures_resumes_with_its_changes_and_its_average(make_job: MakeJob, digits: pl.DataFrame):
    augment = {"flip": True, "crop": 1, "rotate": 10, "erase": 0.1, "mixup": 0.2, "cutmix": 1}
    training = {
        "epochs": 5, "batch_size": 64, "checkpoint_every_s": 0, "augment": augment, "ema": 0.9, "label_smoothing": 0.1,
        "scheduler": {"name": "cosine", "warm_up": 0.3},
    }  # fmt: skip
    params = {"widths": [8, 8], "dropout": 0.1}
    assert_same_when_resumed(make_job, digits.head(300), data="image", family="resnet", target="label", params=params,
                       training=training, limits={"threads": 1})  # fmt: skip


def test_residual_blocks_lion_and_a_plateau_resume(make_job: MakeJob, mixed: pl.DataFrame):
    training = {
        "epochs": 5, "batch_size": 64, "checkpoint_every_s": 0, "ema": 0.99, "accumulate": 2,
        "optimizer": {"name": "lion", "lr": 0.01}, "scheduler": {"name": "plateau", "patience": 0, "factor": 0.5},
    }  # fmt: skip
    params = {"hidden": [16, 16, 8], "residual": True, "activation": "gelu"}
    assert_same_when_resumed(
        make_job, mixed, family="mlp", params=params, training=training, limits={"threads": 1}, **SPEC
    )


def test_frozen_layers_and_the_mean_of_late_epochs_resume(make_job: MakeJob, mixed: pl.DataFrame):
    training = {
        "epochs": 6, "batch_size": 128, "checkpoint_every_s": 0, "swa": 0.3, "optimizer": {"lr": "auto"},
        "freeze": {"layers": ["table"], "epochs": 4},
    }  # fmt: skip
    assert_same_when_resumed(make_job, mixed, family="mlp", training=training, limits={"threads": 1}, **SPEC)


def test_schedule_free_and_blocks_computed_anew_resume(make_job: MakeJob, digits: pl.DataFrame):
    training = {
        "epochs": 4, "batch_size": 64, "checkpoint_every_s": 0, "gradient_checkpointing": True,
        "optimizer": {"name": "schedule_free", "lr": 0.01}, "scheduler": {"name": "constant", "warm_up": 0.3},
        "augment": {"rand_augment": {"operations": 2, "magnitude": 9}},
    }  # fmt: skip
    params = {"widths": [8, 8], "dropout": 0.1}
    assert_same_when_resumed(make_job, digits.head(300), data="image", family="resnet", target="label", params=params,
                       training=training, limits={"threads": 1})  # fmt: skip


def assert_same_when_resumed(make_job: MakeJob, frame: pl.DataFrame, **spec: Any) -> None:
    whole = make_job(frame, name="whole", **spec)
    train.run(whole)
    checkpoint = _stopped(make_job, frame, "stopped", "epoch 3 of", **spec)
    again = make_job(frame, name="again", **spec)
    shutil.copytree(checkpoint, again.checkpoint)
    train.run(again)
    assert _resumed(again) == ["resumed from epoch 3"]
    assert (again.output / "model.onnx").read_bytes() == (whole.output / "model.onnx").read_bytes()


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_forest_resumes_to_the_very_same_trees(make_job: MakeJob, mixed: pl.DataFrame, task: str):
    spec = {**FOREST, "task": task, "target": "age" if task == "regression" else "target"}
    mixed = mixed.drop_nulls("age")
    whole = make_job(mixed, name="whole", **spec)
    train.run(whole)
    checkpoint = _stopped(make_job, mixed, "stopped", "grown ", **spec)
    again = make_job(mixed, name="again", **spec)
    shutil.copytree(checkpoint, again.checkpoint)
    _stop_at(again, "grown ")
    with pytest.raises(Stopped):
        train.run(again)
    assert len(list(again.checkpoint.iterdir())) == 2  # what the first attempt wrote, and a file with the trees since
    third = make_job(mixed, name="third", **spec)
    shutil.copytree(again.checkpoint, third.checkpoint)
    train.run(third)
    assert (_resumed(again), _resumed(third)) == (["resumed from tree 3"], ["resumed from tree 5"])
    assert (third.output / "model.onnx").read_bytes() == (whole.output / "model.onnx").read_bytes()
    steps = [e["step"] for e in third.seen if e["event"] == "progress" and e["step"].startswith("grown")]
    assert steps[0] == "grown 7 of 20 trees"
    assert steps[-1] == "grown 20 of 20 trees"


def test_a_forest_of_other_rows_is_not_continued(make_job: MakeJob, mixed: pl.DataFrame):
    checkpoint = _stopped(make_job, mixed, "stopped", "grown ", **FOREST)
    other = mixed.head(1000)
    made = []
    for name in ("whole", "again"):
        job = make_job(other, name=name, **FOREST)
        if name == "again":
            shutil.copytree(checkpoint, job.checkpoint)
        train.run(job)
        assert _resumed(job) == []
        assert not list(job.checkpoint.glob("trees-*"))
        made.append((job.output / "model.onnx").read_bytes())
    assert made[0] == made[1]


@pytest.mark.parametrize("family", ["gbdt", "xgboost"])
def test_boosting_resumes_at_its_round(make_job: MakeJob, mixed: pl.DataFrame, family: str):
    spec = {**SPEC, "family": family, "params": {"n_estimators": 20}, "training": {"early_stopping": None}}
    checkpoint = _stopped(make_job, mixed, "stopped", "boosting round 10 of", **spec)
    again = make_job(mixed, name="again", **spec)
    shutil.copytree(checkpoint, again.checkpoint)
    result = train.run(again)
    assert _resumed(again) == ["resumed from round 10"]
    assert result["metrics"]["roc_auc"] > 0.75
    rounds = [e["step"] for e in again.seen if e["event"] == "metric"]
    assert min(rounds) > 10
    assert max(rounds) == 20


@pytest.mark.parametrize("family", ["gbdt", "xgboost"])
def test_boosting_remembers_its_best_round(make_job: MakeJob, mixed: pl.DataFrame, family: str):
    """With steps this large the loss only rises after the first rounds."""
    spec = {**SPEC, "family": family, "params": {"learning_rate": 1.0}, "training": {"early_stopping": {"patience": 3}}}
    whole = make_job(mixed, name="whole", **spec)
    train.run(whole)
    checkpoint = _stopped(make_job, mixed, "stopped", "boosting round 10 of", **spec)
    again = make_job(mixed, name="again", **spec)
    shutil.copytree(checkpoint, again.checkpoint)
    train.run(again)
    cards = [json.loads((job.output / "card.json").read_text()) for job in (whole, again)]
    assert cards[0]["fit"]["rounds"] == cards[1]["fit"]["rounds"] < 10
    assert (whole.output / "model.onnx").read_bytes() == (again.output / "model.onnx").read_bytes()


def test_live_events_tell_of_the_training(make_job: MakeJob, mixed: pl.DataFrame):
    job = make_job(mixed, family="mlp", training={"epochs": 2}, **SPEC)
    train.run(job)
    names = {e["name"] for e in job.seen if e["event"] == "metric"}
    assert names == {"train_loss", "validation_loss", "validation_accuracy"}
    fractions = [e["fraction"] for e in job.seen if e["event"] == "progress"]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_a_job_prints_nothing(make_job: MakeJob, mixed: pl.DataFrame, capfd: pytest.CaptureFixture[str]):
    for family in ("mlp", "gbdt", "xgboost"):
        train.run(make_job(mixed, name=family, family=family, training={"epochs": 1}, compress={}, **SPEC))
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_a_job_loads_torch_only_for_networks(make_job: MakeJob, mixed: pl.DataFrame):
    job = make_job(mixed, family="gbdt", compress={}, **SPEC)
    code = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from workers.context import Events, JobContext\n"
        "from workers.jobs import compress, train\n"
        "spec, folder = json.loads(sys.argv[1]), Path(sys.argv[2])\n"
        "train.run(JobContext('j', 'train', 1, spec, folder, Events(1)))\n"
        "assert not {'torch', 'fastapi', 'sqlalchemy', 'redis'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, json.dumps(job.spec), str(job.folder)], check=True, capture_output=True)
    assert (job.output / "model.onnx").exists()


def test_a_network_that_had_stopped_early_learns_no_further(make_job: MakeJob, mixed: pl.DataFrame):
    """The job was killed after its fit, while it judged, say."""
    stopping = {"patience": 1, "min_delta": 0.05}
    training = {"epochs": 30, "batch_size": 128, "checkpoint_every_s": 0, "early_stopping": stopping}
    whole = make_job(mixed, name="whole", family="mlp", training=training, limits={"threads": 1}, **SPEC)
    train.run(whole)
    again = make_job(mixed, name="again", family="mlp", training=training, limits={"threads": 1}, **SPEC)
    shutil.copytree(whole.checkpoint, again.checkpoint)
    train.run(again)
    cards = [json.loads((job.output / "card.json").read_text())["fit"] for job in (whole, again)]
    assert cards[0] == cards[1]
    assert cards[0]["epochs"] < 30
    assert (whole.output / "model.onnx").read_bytes() == (again.output / "model.onnx").read_bytes()
