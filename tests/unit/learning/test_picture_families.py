"""Families of pictures: each trains, exports as it answers, and is compressed or told why not."""

import json
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest
import torch

from app.core.errors import InvalidSpec
from app.specs.families import family
from app.specs.jobs import TrainSpec
from workers.families.base import load_family
from workers.jobs import train

MakeJob = Callable[..., Any]
TINY: dict[str, dict[str, Any]] = {
    "resnet": {"widths": [16, 32]},
    "mobilenet": {"width": 0.1, "dropout": 0.0},
    "convnext": {"widths": [16, 32], "depth": 1, "drop_path": 0.0},
    "vit": {"width": 32, "depth": 2, "heads": 2, "dropout": 0.0},
}
RATES = {"resnet": 0.01, "mobilenet": 0.003, "convnext": 0.01, "vit": 0.003}


@pytest.mark.parametrize("name", TINY)
def test_it_learns_and_exports(make_job: MakeJob, digits: pl.DataFrame, name: str):
    training = {"epochs": 4, "batch_size": 32, "optimizer": {"lr": RATES[name]}}
    job = make_job(digits.head(500), data="image", family=name, target="label", params=TINY[name], training=training,
                   compress={"max_metric_drop": 0.1}, limits={"threads": 1})  # fmt: skip
    result = train.run(job)
    card = json.loads((job.output / "card.json").read_text())
    losses = [e["value"] for e in job.seen if e["event"] == "metric" and e["name"] == "train_loss"]
    assert losses[-1] < losses[0] - 0.1
    assert card["parity"]["label_flips"] == 0
    assert card["parity"]["rows"] == 500
    assert card["fit"]["weights"] > 1000
    base, int8 = result["variants"]
    assert base["latency"]["p50_ms"] > 0
    assert int8["name"] == "int8"
    assert "cannot be made" not in str(int8["reason"])


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (3, 61, 96)])
def test_pictures_of_many_shapes_fit(name: str, shape: tuple[int, int, int]):
    params = family(name).validate(TINY[name]).model_dump()
    network = load_family(family(name), params).network(shape, 5).eval()  # type: ignore[attr-defined]
    with torch.inference_mode():
        assert network(torch.zeros((2, *shape), dtype=torch.uint8)).shape == (2, 5)


def test_a_residual_network_keeps_large_pictures_cheap():
    from workers.families.resnet import Network  # noqa: PLC0415 - beside its use

    seen: dict[int, int] = {}
    for side in (8, 28, 32, 96, 512):
        network = Network((1, side, side), 2, {"widths": [8, 8, 8], "depth": 1, "dropout": 0.0}).eval()
        network.stages[0].register_forward_pre_hook(
            lambda _block, given, side=side: seen.__setitem__(side, given[0].shape[2])
        )
        network(torch.zeros((1, 1, side, side), dtype=torch.uint8))
    assert seen == {8: 8, 28: 14, 32: 16, 96: 12, 512: 16}


@pytest.mark.parametrize(
    ("name", "params", "where"),
    [
        ("convnext", {"widths": [8, 8, 8, 8, 8]}, ("params", "widths")),
        ("vit", {"patch": 9}, ("params", "patch")),
    ],
)
def test_networks_that_pictures_are_too_small_for(name: str, params: dict[str, Any], where: tuple[str, ...]):
    made = load_family(family(name), family(name).validate(params).model_dump())
    with pytest.raises(InvalidSpec) as caught:
        made.network((1, 8, 8), 2)  # type: ignore[attr-defined]
    assert caught.value.errors[0].loc == where


@pytest.mark.parametrize(
    ("spec", "where"),
    [
        ({"family": "vit", "params": {"width": 30}}, ("params", "width")),
        ({"family": "resnet", "params": {"widths": []}}, ("params", "widths")),
        ({"family": "resnet", "task": "regression"}, ("task",)),
        ({"family": "mlp", "training": {"augment": {"flip": True}}}, ("training", "augment")),
        ({"family": "gbdt", "training": {"ema": 0.99}}, ("training", "ema")),
        ({"family": "gbdt", "training": {"freeze": {"layers": ["a"]}}}, ("training", "freeze")),
        ({"family": "mlp", "training": {"ema": 0.99, "swa": 0.5}}, ("training", "swa")),
        ({"family": "linear", "training": {"label_smoothing": 0.1}}, ("training", "label_smoothing")),
        (
            {"family": "mlp", "task": "regression", "training": {"label_smoothing": 0.1}},
            ("training", "label_smoothing"),
        ),
    ],
)
def test_what_makes_no_sense_together_is_refused_before_the_queue(spec: dict[str, Any], where: tuple[str, ...]):
    full = {"kind": "train", "model": "m", "dataset": "d@1", "task": "classification", "target": "label", **spec}
    with pytest.raises(InvalidSpec) as caught:
        TrainSpec.model_validate(full).check_family()
    assert caught.value.errors[0].loc == where


def test_plateau_takes_no_warm_up():
    with pytest.raises(ValueError, match=r"training\.scheduler\.warm_up"):
        TrainSpec.model_validate(
            {"kind": "train", "model": "m", "dataset": "d@1", "task": "classification", "target": "y", "family": "mlp",
             "training": {"scheduler": {"name": "plateau", "warm_up": 0.1}}}
        )  # fmt: skip
