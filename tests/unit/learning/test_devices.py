"""Several devices: real processes that share every batch, over gloo on a CPU."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from app.core.errors import Crashed, InvalidSpec
from app.specs.jobs import TrainSpec
from app.specs.training import TrainingSpec
from workers.context import Events, JobContext, Stopped
from workers.host import check_devices
from workers.training.batches import Batches, Rank, Tensors
from workers.training.loop import train as train_network

MakeJob = Callable[..., Any]


class Norms(nn.Module):
    """Two numbers to two classes, through a batch norm."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        first = nn.Linear(2, 8, bias=False)  # the norm would take a bias away: only rounding would move it
        self.layers = nn.Sequential(first, nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.layers(x)
        return answer


class Streamed:
    """Rows that are read while a network learns."""

    def __len__(self) -> int:
        return 1

    def windows(self, seed: int | None, epoch: int) -> Iterator[Any]:
        raise NotImplementedError


class Mishap(Norms):
    """Something happens to a batch that is larger than 4, or holds the row that is 9."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and self.what == "memory" and len(x) > 4:
            raise torch.OutOfMemoryError
        if self.training and self.what == "killed" and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.training and self.what == "diverged" and bool((x == 9).any()):
            x = x * float("nan")
        return super().forward(x)


def jitter(inputs: tuple[torch.Tensor, ...], y: torch.Tensor, rng: np.random.Generator) -> Any:
    return tuple(x + float(rng.normal()) / 10 for x in inputs), y


def fit(
    job: Any,
    network: nn.Module,
    change: Any = None,
    *,
    rows: int = 131,
    odd: float = 0,
    source: Any = None,
    **spec: Any,
) -> dict[str, Any]:
    """131 rows in batches of 33: ranks have 17 and 16 rows, at last 16 and 16; `odd` is a value of one row."""
    drawn = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 2, generator=drawn)
    data = Tensors((x.clone(),), (x[:, 0] > 0).long())
    watch = Tensors((x,), data.y)
    if odd:
        data.inputs[0][5] = odd
    asked = {"epochs": 3, "batch_size": 33, "optimizer": {"lr": 0.02}, "devices": 2, "checkpoint_every_s": 0, **spec}
    training = TrainingSpec.model_validate(asked)
    return train_network(network, nn.CrossEntropyLoss(), source or data, watch, training, job, 2, "cpu", change)


def logged(job: Any) -> list[str]:
    return [e["message"] for e in job.seen if e["event"] == "log"]


@pytest.fixture(autouse=True)
def none_left() -> Iterator[None]:
    """No rank outlives its training: the server that forks them has no child then."""
    yield
    ranks = [p for p in psutil.Process().children(recursive=True) if p.ppid() != os.getpid()]
    assert [p for p in ranks if p.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.parametrize(
    "more",
    [
        {"ema": 0.9, "accumulate": 2, "label_smoothing": 0.1, "freeze": {"layers": ["layers.4"], "epochs": 1}},
        {"swa": 0.3, "scheduler": {"name": "plateau", "patience": 0}, "optimizer": {"name": "sgd", "lr": "auto"}},
        {"optimizer": {"name": "schedule_free", "lr": 0.02}, "early_stopping": {"patience": 1, "min_delta": 0.5}},
    ],
)
def test_two_learn_what_one_learns(make_job: MakeJob, mixed: pl.DataFrame, more: dict[str, Any]):
    """Of batches that do not divide, through batch norms, which see whole batches."""
    one, two = Norms(), Norms()
    facts = fit(make_job(mixed, name="one"), one, devices=1, **more)
    job = make_job(mixed, name="two")
    shared = fit(job, two, **more)
    assert shared == {**facts, "validation_loss": pytest.approx(facts["validation_loss"], abs=1e-5)}
    for name, weight in one.state_dict().items():
        assert torch.allclose(weight, two.state_dict()[name], atol=1e-5), name
    assert "2 processes share every batch, 1 threads each" in logged(job)
    assert not (job.folder / "ranks").exists()
    # Rank 0 alone tells: as many points as one device, in the same order.
    seen = (make_job(mixed, name="one").seen, job.seen)
    told = [[(e["name"], e["step"]) for e in events if e["event"] == "metric"] for events in seen]
    assert told[0] == told[1]


def test_a_stopped_run_goes_on_to_the_very_same_weights(make_job: MakeJob, mixed: pl.DataFrame):
    """With dropout and changes that each rank draws by itself; the ranks are killed where they are."""
    whole, again = Norms(0.3), Norms(0.3)
    fit(make_job(mixed, name="whole"), whole, jitter, epochs=10)
    job = make_job(mixed, name="stopped")
    emit = type(job).progress

    class Stopping(type(job)):  # type: ignore[misc]  # made from the fixture's class
        def progress(self, fraction: float, told: str, eta_s: float | None = None) -> None:
            emit(self, fraction, told, eta_s)
            if told.startswith("epoch 3 of"):
                self.stop.set()

    job.__class__ = Stopping
    with pytest.raises(Stopped):
        fit(job, Norms(0.3), jitter, epochs=10)
    assert job.seen[-1]["event"] == "checkpoint"
    assert [path.name for path in job.checkpoint.iterdir()] == ["torch.ckpt"]
    resumed = make_job(mixed, name="again")
    shutil.copytree(job.checkpoint, resumed.checkpoint)
    fit(resumed, again, jitter, epochs=10)
    assert any(message.startswith("resumed from epoch ") for message in logged(resumed))
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


def test_mishaps_of_a_rank_are_the_trainings(make_job: MakeJob, mixed: pl.DataFrame):
    with pytest.raises(Crashed, match="rank 1 of the training's processes was killed by signal 9"):
        fit(make_job(mixed, name="killed"), Mishap("killed"))
    network = Mishap("memory")
    job = make_job(mixed, name="memory")
    facts = fit(job, network, rows=40, batch_size=16, epochs=1)
    assert (facts["batch_size"], facts["accumulate"]) == (8, 2)
    job = make_job(mixed, name="diverged")
    with pytest.raises(InvalidSpec, match="never finite") as caught:
        fit(job, Mishap("diverged"), odd=9)  # one row of one rank
    assert caught.value.errors[0].loc == ("training", "optimizer", "lr")


def _learn_on(folder: Path) -> None:
    events = os.open(folder / "events.jsonl", os.O_CREAT | os.O_WRONLY)
    fit(JobContext("job-2", "train", 1, {}, folder, Events(events)), Norms(), epochs=100_000, early_stopping=None)


@pytest.mark.slow
def test_ranks_die_with_the_job(tmp_path: Path):
    job = get_context("forkserver").Process(target=_learn_on, args=(tmp_path,))
    job.start()
    while not (tmp_path / "checkpoint" / "torch.ckpt").exists():
        assert job.is_alive()
        time.sleep(0.05)
    started = psutil.Process(job.pid).children(recursive=True)  # a server of its own, with two ranks
    assert len(started) >= 3
    job.kill()
    job.join()
    _, left = psutil.wait_procs(started, timeout=20)
    assert left == []


def test_what_devices_cannot_share_is_refused(make_job: MakeJob, mixed: pl.DataFrame):
    for rows, names in ((Streamed(), "larger than memory"), (None, "1 training and 1 validation rows")):
        with pytest.raises(InvalidSpec, match=names) as caught:
            fit(make_job(mixed), Norms(), rows=1, source=rows)
        assert caught.value.errors[0].loc == ("training", "devices")
    with pytest.raises(InvalidSpec, match="the job has 1 threads") as caught:
        check_devices(2, "cpu", 1)
    assert caught.value.errors[0].loc == ("training", "devices")
    with pytest.raises(ValidationError, match="fewer rows than there are devices"):
        TrainingSpec(batch_size=1, devices=2)
    spec = {"kind": "train", "model": "m", "dataset": "d@1", "task": "classification", "target": "t"}
    with pytest.raises(InvalidSpec, match="no training loop that devices could share") as caught:
        TrainSpec.model_validate({**spec, "family": "gbdt", "training": {"devices": 2}}).check_family()
    assert caught.value.errors[0].loc == ("training", "devices")


@given(st.integers(2, 60), st.integers(1, 20), st.integers(2, 5), st.sampled_from([None, 7]))
def test_ranks_share_every_batch_and_each_has_a_row(rows: int, size: int, ranks: int, seed: int | None):
    assume(min(rows, size) >= ranks)
    data = Tensors((torch.arange(rows),), torch.arange(rows))
    shares = [[y.tolist() for _, y in Batches(data, size, seed, rank=Rank(at, ranks))] for at in range(ranks)]
    assert {len(share) for share in shares} == {len(Batches(data, size, seed, rank=Rank(0, ranks)))}
    assert min(len(batch) for share in shares for batch in share) >= 1
    assert sorted(row for share in shares for batch in share for row in batch) == list(range(rows))
