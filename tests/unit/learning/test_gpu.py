"""Training on a real GPU: precision, memory that is too small, a run that goes on, what is exported and compressed."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import polars as pl
import pytest
import torch
from torch import nn

from app.core.errors import InvalidSpec
from app.core.host import host_class, host_name
from app.serving.provider import lacks_cuda
from app.specs.training import TrainingSpec
from workers.evaluation.device import measuring_device
from workers.jobs import compress, measure, train
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


measured_there = pytest.mark.skipif(lacks_cuda() is not None, reason="this ONNX Runtime has no CUDA")


def compressing(make_job: MakeJob, digits: pl.DataFrame, kind: str, **spec: Any) -> Any:
    """A job for the GPU on a version of wide convolutions, that is trained there."""
    trained = make_job(
        digits, data="image", name="wide", family="cnn", target="label", params={"channels": [32, 64]},
        training={"epochs": 4, "batch_size": 64, "optimizer": {"lr": 0.01}},
    )  # fmt: skip
    if not (trained.output / "model.onnx").exists():
        train.run(trained)
    job = make_job(digits, data="image", name=kind, kind=kind)
    job.spec = {"kind": kind, "model": "m", "version": 1, "resources": {"device": "cuda"}, **spec}
    (job.input / "model").symlink_to(trained.output)
    return job


@measured_there
def test_the_driver_and_torch_call_the_gpu_the_same():
    assert measuring_device("cuda") == "cuda:0"
    assert host_class(host_name("cuda:0")) == f"cuda {torch.cuda.get_device_name(0)}"


@measured_there
def test_half_precision_is_what_a_gpu_tries_first_and_it_is_kept_for_that_gpu(make_job: MakeJob, digits: pl.DataFrame):
    result = compress.run(compressing(make_job, digits, "compress", budget={"max_metric_drop": 0.05}))
    [variant] = result["variants"]
    assert (variant["name"], variant["state"], variant["reason"]) == ("fp16", "accepted", None)
    assert host_class(variant["latency"]["host"]) == f"cuda {torch.cuda.get_device_name(0)}"
    assert variant["bytes"] < result["compression"]["full"]["bytes"] / 1.5
    assert variant["metrics"]["accuracy"] == pytest.approx(result["metrics"]["accuracy"], abs=0.01)


@measured_there
def test_a_search_measures_every_recipe_there(make_job: MakeJob, digits: pl.DataFrame):
    budget = {"max_metric_drop": 0.05, "time_limit_s": 40}
    report = compress.run(compressing(make_job, digits, "compress", budget=budget))["compression"]
    first, *others = report["candidates"]
    assert first["recipe"] == [{"step": "half"}]
    assert first["failed"] is None
    assert {one["latency"]["host"] for one in report["candidates"] if one["failed"] is None} == {report["host"]}
    assert report["host"] == host_name("cuda:0")
    assert any(one["recipe"][-1] == {"step": "half"} and len(one["recipe"]) > 1 for one in others)


@measured_there
def test_variants_are_measured_anew_there(make_job: MakeJob, digits: pl.DataFrame):
    result = measure.run(compressing(make_job, digits, "measure", budgets={}))
    assert result["host"] == f"cuda {torch.cuda.get_device_name(0)}"
    [base] = result["variants"]
    assert base["latency"]["host"] == host_name("cuda:0")
    assert base["metrics"]["accuracy"] > 0.8
