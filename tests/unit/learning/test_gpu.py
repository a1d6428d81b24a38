"""Training on a real GPU: precision, memory that is too small, a run that goes on, and what is exported."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import polars as pl
import pytest
import torch
from torch import nn

from app.core.errors import InvalidSpec
from app.specs.training import TrainingSpec
from workers.jobs import train
from workers.training.batches import Tensors
from workers.training.loop import train as train_network

MakeJob = Callable[..., Any]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")]
DIGITS: dict[str, Any] = {"family": "cnn", "target": "label", "params": {"channels": [8, 16]}}


def learned(make_job: MakeJob, digits: pl.DataFrame, name: str, device: str, **training: Any) -> dict[str, Any]:
    """The card of a version that has learnt scikit-learn's digits, and what its job said."""
    spec = {"epochs": 6, "batch_size": 64, "optimizer": {"lr": 0.01}, **training}
    job = make_job(digits, data="image", name=name, training=spec, resources={"device": device}, **DIGITS)
    result = train.run(job)
    card = json.loads((job.output / "card.json").read_text())
    return {"accuracy": result["metrics"]["accuracy"], "card": card}


@pytest.mark.parametrize("precision", ["32", "bf16", "fp16"])
def test_pictures_are_learnt_and_the_export_answers_as_the_network(
    make_job: MakeJob, digits: pl.DataFrame, precision: str
):
    found = learned(make_job, digits, "gpu", "auto", precision=precision)
    assert found["accuracy"] > 0.93
    assert found["card"]["environment"]["device"] == "cuda"
    assert found["card"]["parity"]["label_flips"] == 0


def test_the_cpu_learns_the_same(make_job: MakeJob, digits: pl.DataFrame):
    gpu, cpu = (learned(make_job, digits, device, device) for device in ("cuda", "cpu"))
    assert cpu["card"]["environment"]["device"] == "cpu"
    assert gpu["accuracy"] == pytest.approx(cpu["accuracy"], abs=0.02)


class Wide(nn.Module):
    """Takes 64 MB for each row while it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 1 << 23), nn.Linear(1 << 23, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x)))


@pytest.fixture
def two_gigabytes() -> Iterator[None]:
    """Leave this process so much of the device."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((2 << 30) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.usefixtures("two_gigabytes")
def test_a_batch_that_the_device_has_no_memory_for_is_halved(make_job: MakeJob, mixed: pl.DataFrame):
    inputs = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
    rows = Tensors((inputs,), (inputs[:, 0] > 0).long())
    spec = TrainingSpec.model_validate({"epochs": 1, "batch_size": 64, "optimizer": {"name": "sgd", "lr": 1e-6}})
    facts = train_network(Wide(), nn.CrossEntropyLoss(), rows, rows, spec, make_job(mixed), 1, "cuda")
    assert facts["batch_size"] < 64
    assert facts["batch_size"] * facts["accumulate"] == 64
    assert facts["epochs"] == 1


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_learn_what_one_learns(make_job: MakeJob, digits: pl.DataFrame):
    one, two = (learned(make_job, digits, str(count), "cuda", devices=count) for count in (1, 2))
    assert two["accuracy"] == pytest.approx(one["accuracy"], abs=0.02)
    assert two["card"]["fit"]["validation_loss"] == pytest.approx(one["card"]["fit"]["validation_loss"], abs=0.05)
    assert two["card"]["parity"]["label_flips"] == 0


def test_more_gpus_than_there_are_are_refused(make_job: MakeJob, digits: pl.DataFrame):
    with pytest.raises(InvalidSpec, match="CUDA devices, not 64"):
        learned(make_job, digits, "many", "cuda", devices=64)
