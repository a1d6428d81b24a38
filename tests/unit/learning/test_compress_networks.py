"""Networks made again from their graphs, to be pruned, taught under rounding, or left without layers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
import torch
from torch import nn

from app.specs.compression import CompressBudget
from app.specs.jobs import TrainSpec
from tests.unit.learning.test_text import reviews
from workers.compression.candidate import Candidate, Notebook
from workers.compression.graphs import operators_of, weights_of
from workers.compression.material import Material, Origin
from workers.compression.measuring import Measuring
from workers.compression.recipes import Maker
from workers.compression.search import Search
from workers.compression.space import WEIGHTS_ALONE, Space
from workers.compression.teaching import soft_data
from workers.data.prepare import prepare
from workers.evaluation.judge import Judge
from workers.export.torch_weights import Unreadable
from workers.families.weight_folders import with_their_size
from workers.jobs import train
from workers.learning import Rule
from workers.training.rounding import begin_rounding, end_rounding

MakeJob = Callable[..., Any]
TRAINING = {"epochs": 6, "batch_size": 16, "optimizer": {"lr": 0.005}}


def maker_of(job: Any, folder: Path) -> Maker:
    """Of a version that is trained now; validation rows judge."""
    if not (job.output / "model.onnx").exists():
        train.run(job)
    spec = TrainSpec.model_validate({k: v for k, v in job.spec.items() if k != "limits"}).check_family()
    spec = with_their_size(job, spec)
    prepared = prepare(job, spec)
    judge = Judge("classification", *prepared.part("validation"), Rule(), 1)
    origin = Origin(spec.family, spec.params, spec.training)
    return Maker(Material((job.output / "model.onnx").read_bytes(), prepared, judge, 0, folder, origin, job))


def accuracy(maker: Maker, recipe: list[Any]) -> float:
    return maker.material.judge.metrics(maker.make(recipe))["accuracy"]


@pytest.mark.slow
def test_a_pruned_network_is_narrower_learns_to_be_rounded_and_is_the_same_each_time(
    make_job: MakeJob, digits: pl.DataFrame, tmp_path: Path
):
    params = {"widths": [16, 32], "depth": 1}
    job = make_job(digits[:800], data="image", target="label", family="resnet", params=params, training=TRAINING)
    maker = maker_of(job, tmp_path / "once")
    prune = {"step": "prune", "keep": 0.5, "importance": "taylor"}
    raw = maker.make([prune])
    assert not (job.folder / "trials").exists()
    assert Maker(replace(maker.material, folder=tmp_path / "again", _kept={})).make([prune]) == raw
    full, pruned = (weights_of(model) for model in (maker.material.graph(), onnx.load_from_string(raw)))
    kernels = [name for name, tensor in full.items() if len(tensor.dims) == 4]
    assert all(pruned[name].dims[0] % 8 == 0 for name in kernels)
    before, after = (sum(int(np.prod(side[name].dims)) for name in kernels) for side in (full, pruned))
    assert after < 0.6 * before
    assert accuracy(maker, [prune]) > accuracy(maker, []) - 0.1
    int8 = {"step": "quantize", "method": "static", "operators": ["Conv", "Relu"], "activations": "uint8",
            "calibration": "min-max"}  # fmt: skip
    taught = [prune, {"step": "learn_rounding", "operators": int8["operators"]}]
    assert operators_of(maker.graph(taught)) == operators_of(maker.graph([prune]))  # a plain network again
    assert accuracy(maker, [*taught, int8]) > accuracy(maker, taught) - 0.03
    graph = maker.graph([])
    next(t for t in graph.graph.initializer if t.name.endswith("head.weight")).name = "other"
    next(n for n in graph.graph.node if n.op_type == "Gemm").input[1] = "other"
    strange = Maker(replace(maker.material, model=graph.SerializeToString(), folder=tmp_path / "strange", _kept={}))
    with pytest.raises(Unreadable, match=r"cannot be read back: 'head.weight' is not there"):
        strange.make([prune])


def test_weights_learn_where_rounding_puts_them():
    """A small weight beside a large one: its gradient passes through, and what is left is a plain layer."""
    layer = nn.Sequential(nn.Linear(2, 1, bias=False))
    layer[0].weight = nn.Parameter(torch.tensor([[127.0, 0.4]]))
    begin_rounding(layer, ["MatMul"])
    rows = torch.tensor([[0.0, 255.0], [255.0, 0.0]])
    assert layer(rows).flatten().tolist() == [0.0, 127.0 * 255]
    layer(rows).sum().backward()
    assert layer[0].parametrizations.weight.original.grad.tolist() == [[255.0, 255.0]]
    end_rounding(layer)
    assert layer(rows).flatten().tolist() == pytest.approx([0.4 * 255, 127.0 * 255])
    assert [name for name, _ in layer.named_modules()] == ["", "0"]


@pytest.mark.slow
def test_an_encoder_without_some_layers_answers_nearly_as_before(make_job: MakeJob, tmp_path: Path):
    params = {"depth": 2, "width": 32, "heads": 2, "max_tokens": 16, "dropout": 0.0}
    training = {**TRAINING, "epochs": 3, "optimizer": {"lr": 0.005}}
    maker = maker_of(make_job(reviews(), family="transformer", params=params, training=training), tmp_path)
    step = {"step": "drop_layers", "keep": 1, "table_rank": 8}
    short = weights_of(maker.graph([step]))
    assert max(tensor.dims[-1] for name, tensor in short.items() if name.endswith("word_embeddings.0.weight")) == 8
    assert sum(".attention.output.dense.bias" in name for name in short) == 1
    assert len(maker.make([step])) < len(maker.material.model)
    assert accuracy(maker, [step]) > accuracy(maker, []) - 0.1
    learns_answers_and_labels_alike(maker.material)


def learns_answers_and_labels_alike(material: Material) -> None:
    data = soft_data(material, 1)
    rows = material.learnt()
    told = np.concatenate([data.validation.y, data.train.y])
    labels = (told - 0.5 * material.told()).round(5)
    assert sorted(np.unique(labels)) == [0.0, 0.5]
    assert (labels.argmax(axis=1) == material.prepared.y[rows]).all()


@pytest.mark.slow
def test_an_encoder_learns_to_be_rounded_short_as_it_is(make_job: MakeJob, tmp_path: Path):
    params = {"depth": 2, "width": 32, "heads": 2, "max_tokens": 16, "dropout": 0.0}
    training = {**TRAINING, "epochs": 4}
    maker = maker_of(make_job(reviews(), family="transformer", params=params, training=training), tmp_path)
    short = {"step": "drop_layers", "keep": 1, "table_rank": 8}
    rounded = {"step": "learn_rounding", "operators": ["MatMul", "Gemm"]}
    assert operators_of(maker.graph([short, rounded])) == operators_of(maker.graph([short]))
    told, full = (maker.material.judge.metrics(maker.make(recipe)) for recipe in ([short, rounded], [short]))
    assert told["log_loss"] < full["log_loss"] + 0.1  # what it knew is still there
    int8 = [short, rounded, {"step": "fuse", "fast_gelu": False}, WEIGHTS_ALONE]
    assert accuracy(maker, int8) > accuracy(maker, [short]) - 0.1


@pytest.mark.slow
def test_a_vision_transformer_loses_layers_and_learns_to_be_rounded(
    make_job: MakeJob, digits: pl.DataFrame, tmp_path: Path
):
    params = {"depth": 3, "width": 32, "heads": 2, "dropout": 0.0}
    job = make_job(digits[:500], data="image", target="label", family="vit", params=params, training=TRAINING)
    maker = maker_of(job, tmp_path)
    short = {"step": "drop_layers", "keep": 2, "table_rank": None}
    names = weights_of(maker.graph([short]))
    assert {name.split("layers.")[1].split(".")[0] for name in names if "layers." in name} == {"0", "1"}
    assert accuracy(maker, [short]) > accuracy(maker, []) - 0.1
    int8 = [short, {"step": "learn_rounding", "operators": ["MatMul", "Gemm"]}, WEIGHTS_ALONE]
    assert accuracy(maker, int8) > accuracy(maker, [short]) - 0.05
    assert len(maker.make(int8)) < 0.5 * len(maker.make([short]))
    # A search teaches the int8 graph that is beyond the budget; what changes nodes alone comes after that.
    fused = {"step": "fuse", "fast_gelu": False}
    budget = CompressBudget(max_metric_drop=0.5)
    measuring = Measuring(maker, maker.material.judge, "accuracy", budget)
    search = Search(measuring, Space.of(maker.material, maker.graph([])), Notebook(None, "host", "model"), 600.0)
    beyond = Candidate([short, fused, WEIGHTS_ALONE], loss={"at_most": 1.0, "allowed": 0.5}, speed_up=2.0)
    search.notebook.add(beyond, 0.0)
    search._learn_rounding()
    found = search.notebook.all()[-1]
    assert found.recipe == [short, {"step": "learn_rounding", "operators": ["MatMul", "Gemm"]}, fused, WEIGHTS_ALONE]
    assert (found.failed, found.stops) == (None, [])
